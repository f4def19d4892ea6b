"""FSL-SAGE: the client learns from a head that the server aligns with its own gradients (Nair et al., arXiv 2505.23182)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..aligned import Aligned
from ..auxiliary import HeadOptions, auxiliary_loss, head_of
from ..client import Client, Record
from ..program import Sends
from ..task import Batch
from ..wire import Exchange

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class FslSageOptions(HeadOptions):
    """The head, how often the server learns from activations, and how it aligns the head."""

    send_every: Annotated[Count, "activations are sent on every h-th step of a round"] = 5
    align_rounds: Annotated[
        Annotated[int, Field(ge=0)], "rounds between alignments; 0: never, the head learns from its own loss (CSE-FSL)"
    ] = 10
    align_epochs: Annotated[Count, "passes over the memory in an alignment"] = 100
    align_lr: Annotated[Annotated[float, Field(gt=0)], "learning rate of the alignment (Adam)"] = 1e-3
    align_batch: Annotated[Count, "samples of an alignment's mini-batch"] = 1000
    memory_size: Annotated[Count, "newest samples of each client that the server keeps for it"] = 1000


class FslSage:
    """z up every few steps; the head's gradient at the cut is the client's; the server sends a better head every few rounds.

    A head is aligned in the first step of rounds 0, align_rounds, ..., as in the authors' code, where it is personal too, and in the
    first step that a client ever takes. Theirs moves the server's running statistics while it aligns, and compares sums over batches
    of other sizes; ours does neither.
    """

    Options: ClassVar[type] = FslSageOptions
    needs_labels: ClassVar[bool] = True
    record_names: ClassVar[tuple[str, ...]] = ()
    reply_kind: ClassVar[str] = "auxiliary"

    def __init__(self, options: FslSageOptions, client: Client) -> None:
        self.options, self.aligned, self.has_head = options, options.align_rounds > 0, False
        client.add(
            "auxiliary", head_of(options, client.task), auxiliary_loss, travels=not self.aligned, trained=not self.aligned
        )

    @staticmethod
    def comes_back(options: FslSageOptions) -> bool:
        return False

    @staticmethod
    def server_part(options: FslSageOptions) -> Aligned | None:
        return Aligned(options) if options.align_rounds else None

    @staticmethod
    def sends(options: FslSageOptions, round: int, step: int, seen: int) -> Sends:
        """Return whether a step sends activations, and whether it asks for a head; `seen` are steps that had one."""
        asks = options.align_rounds > 0 and (not seen or (step == 0 and round % options.align_rounds == 0))
        return Sends(asks or step % options.send_every == 0, asks)

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        sends, asks = self.sends(self.options, client.round, client.step, int(self.has_head))
        z = client.forward(batch)
        reply = (yield from client.uplink(z, batch, gradient=asks)) if sends else None
        if reply is not None:
            self.has_head = True
            client.modules["auxiliary"].load_state_dict({role.partition("/")[2]: t for role, t in reply.tensors.items()})
        if self.aligned:
            client.update(z=z, cut_grad=client.gradient("auxiliary", z, batch))
        else:
            client.update(client.loss("auxiliary", z, batch))
        return {}

    def state(self) -> dict[str, Any]:
        return {"has_head": self.has_head}

    def load(self, state: Mapping[str, Any]) -> None:
        self.has_head = state["has_head"]
