"""What a schedule is asked, and what it knows of a run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ..wire import Message

if TYPE_CHECKING:
    from ..server import Server


class Plan(NamedTuple):
    """What every schedule knows of a run: how many clients and rounds, when is evaluated, and the seed of its draws."""

    num_clients: int
    rounds: int
    evaluate_every: int = 1
    seed: int = 0

    def evaluated(self, round: int) -> bool:
        """Return whether a round ends with an evaluation: every `evaluate_every`-th and the last five."""
        return (round + 1) % self.evaluate_every == 0 or round >= self.rounds - 5


class Schedule(Protocol):
    """`due`: the training messages to compute now, in order, an inner list being one step; `sync`: the replies now due.

    `due` is asked when a message has come, and, with None, when somebody waits who did not before.

    `Options` is a frozen dataclass whose fields are recipe fields; `server_copies` says whether every client has a top of its own;
    `rate` is the factor of the learning rate of a server step, `pace` the round that this rate follows, and `turn` which pass over its
    data a client is in. `absent` are clients
    that have left; `left` is asked when nothing is under way, and returns the replies due because of that. Who comes back says hello,
    and takes part again from the next round on. `asks` returns what a turn of a round asks a client for at its end (1 weights, 2 those
    for evaluation, 3 both), unless clients are frozen; clients check every turn with it. No turn has a number from `last_turn` on.
    """

    Options: ClassVar[type]
    plan: Plan
    round: int
    server_copies: bool
    absent: set[int]

    def due(self, server: "Server", message: Message | None) -> list[list[Message]]: ...
    def sync(self, server: "Server", message: Message) -> list[Message]: ...
    def left(self, server: "Server", client: int) -> list[Message]: ...
    def rate(self, client: int) -> float: ...
    def pace(self, client: int) -> int: ...
    def turn(self, client: int) -> int: ...
    def asks(self, round: int, may_freeze: bool) -> int: ...
    @property
    def last_turn(self) -> int: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: Mapping[str, Any]) -> None: ...
