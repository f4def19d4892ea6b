"""Loss-based asynchronous training: clients update only when the server's loss has moved (arXiv 2107.09786)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..client import Client, Record
from ..program import Method
from ..stored import A, B, C, Stored
from ..task import Batch
from ..wire import Exchange

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class LossThresholdOptions:
    """When the server calls for gradients (A), for activations alone (B), or for nothing (C)."""

    may_be_infinite = ("threshold",)

    threshold: Annotated[
        float, "change of the mean training loss that starts a full exchange; inf: never again, -inf: whenever the rule asks"
    ] = 0.1
    threshold_rule: Annotated[
        Literal["always_b_after_a", "compare_with_previous_a"],
        "after a full exchange always activations alone (SLPerf); or one more if the loss moved since the one before (secretflow)",
    ] = "always_b_after_a"
    threshold_of: Annotated[Literal["fall", "change"], "what is compared: how far the loss fell, or moved either way"] = "fall"
    threshold_relative: Annotated[bool, "the threshold is a share of the remembered loss"] = False
    max_rest: Annotated[Count, "full exchange after so many rounds of rest; 0: no limit"] = 0
    first_full: Annotated[Count, "full exchanges at the start, at least"] = 1
    last_full: Annotated[Count, "full exchanges at the end"] = 0


class LossThreshold(Method):
    """A: as conventional split learning. B: activations up, client frozen. C: client at rest, the server learns from what it stored.

    The paper's text was not available: states and rules are those of two independent re-implementations. In B the client
    normalises by its batches and keeps its statistics. Momentum of the client stands still in B and C, the server's goes on.
    """

    Options: ClassVar[type] = LossThresholdOptions
    needs_labels: ClassVar[bool] = True
    record_names: ClassVar[tuple[str, ...]] = ()
    decides_for_all: ClassVar[bool] = True
    go_numbers: ClassVar[tuple[str, ...]] = ("state", "rest")

    def __init__(self, options: LossThresholdOptions, client: Client) -> None:
        pass

    @staticmethod
    def comes_back(options: LossThresholdOptions) -> bool:
        return True

    @staticmethod
    def server_part(options: LossThresholdOptions) -> Stored:
        return Stored(options)

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        full = client.orders["state"] == A
        z = client.forward(batch, graph=full, statistics=full)
        reply = yield from client.uplink(z, batch, gradient=full)
        if reply is not None:
            client.update(z=z, cut_grad=reply.tensors)
        return {}


__all__ = ["A", "B", "C", "LossThreshold", "LossThresholdOptions"]
