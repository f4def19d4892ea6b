"""What crosses the cut: one message type in both directions, and what yields it."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from .frame import Packed

Reply = Literal["wait", "later", "none"]
REPLIES: tuple[Reply, ...] = ("wait", "later", "none")


@dataclass(frozen=True, eq=False)
class Message:
    """One message between a client and the server; `client` is the client concerned, in both directions.

    `tensors` by role: smashed (N, *cut), labels (N, ...), cut_grad, context/<name>, weights/<module>.<parameter>, ...
    `step` pairs a reply with its request; `reply` says whether the sender waits for one; `open`: more of this exchange
    follows. `packed` is how a message came that was unpacked.
    """

    kind: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    client: int = 0
    step: int = 0
    reply: Reply = "wait"
    open: bool = False
    packed: "Packed | None" = field(default=None, compare=False, repr=False)

    @property
    def is_mark(self) -> bool:
        """Whether it only asks for a mark, or answers that."""
        return self.kind == "mark"

    @property
    def is_sync(self) -> bool:
        """Whether it ends a turn, or says hello."""
        return self.kind == "sync"

    @property
    def is_hello(self) -> bool:
        """Whether a client says with it that it is there, at the start or after a mark."""
        return self.is_sync and not self.numbers["done"]


class Collect(NamedTuple):
    """Yielded by a client to obtain the reply to an earlier "later" message; blocks until it is there."""

    step: int


T = TypeVar("T")
Exchange = Generator[Message | Collect, Message | None, T]


def family(role: str) -> str:
    """Return what a role is accounted and coded under: the part before its first slash."""
    return role.partition("/")[0]
