"""Which messages are computed now, and who goes on after a sync: two questions, one class per answer."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .wire import Message

if TYPE_CHECKING:
    from .server import Server


class Schedule(Protocol):
    """`due`: the training messages to compute now, in order, an inner list being one step; `sync`: the gos now due."""

    round: int

    def due(self, server: "Server", message: Message) -> list[list[Message]]: ...
    def sync(self, server: "Server", message: Message) -> list[Message]: ...
    def evaluated(self, round: int) -> bool: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: Mapping[str, Any]) -> None: ...


class Relay:
    """Vanilla split learning: clients take turns of one pass over their data, in the order of their numbers.

    `hand_over` reset, carry, local: the client model travels through the server. shared: it is one object and
    nothing travels (as in the code of arXiv 2601.19261). Weights come back only when the next turn is somebody else's,
    or, metered apart, when a round ends that is evaluated.
    """

    def __init__(self, num_clients: int, rounds: int, hand_over: str = "reset", evaluate_every: int = 1) -> None:
        self.num_clients, self.rounds, self.hand_over, self.evaluate_every = num_clients, rounds, hand_over, evaluate_every
        self.round, self.active = 0, 0
        self.waiting: dict[int, Message] = {}

    def due(self, server: "Server", message: Message) -> list[list[Message]]:
        return [[message]]

    def evaluated(self, round: int) -> bool:
        """Return whether a round ends with an evaluation: every `evaluate_every`-th and the last five."""
        return (round + 1) % self.evaluate_every == 0 or round >= self.rounds - 5

    def sync(self, server: "Server", message: Message) -> list[Message]:
        self.waiting[message.client] = message
        if message.numbers["done"]:
            server.version += self.hand_over != "shared"
            self.active = (self.active + 1) % self.num_clients
            if self.active == 0:
                server.end_round()
                self.round += 1
            server.on_mark(server)
        over = self.round == self.rounds
        ready = [k for k in sorted(self.waiting) if over or k == self.active]
        return [self._go(server, self.waiting.pop(k), over) for k in ready]

    def _go(self, server: "Server", sync: Message, over: bool) -> Message:
        hands_change = self.num_clients > 1
        ends_round = self.active == self.num_clients - 1
        if self.hand_over == "shared" or over:
            give_back = 0
        elif hands_change:
            give_back = 1
        else:
            give_back = 2 if ends_round and self.evaluated(self.round) else 0
        version = int(sync.numbers["version"])
        return server.go(sync.client, version=version, give_back=give_back, stop=over, step=sync.step)

    def state(self) -> dict[str, Any]:
        return {"round": self.round, "active": self.active}

    def load(self, state: Mapping[str, Any]) -> None:
        self.round, self.active = state["round"], state["active"]


def _relay(recipe: Any) -> Schedule:
    return Relay(recipe.num_clients, recipe.rounds, recipe.hand_over, recipe.evaluate_every)


class Entry(NamedTuple):
    """A row of the table: what makes a schedule from a recipe, and one line about it."""

    build: Callable[[Any], Schedule]
    line: str


SCHEDULES: dict[str, Entry] = {
    "relay": Entry(_relay, "clients take turns; the client model travels (or is shared, hand_over = shared)"),
}
