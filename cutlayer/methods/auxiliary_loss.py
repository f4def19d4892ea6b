"""Decoupled split learning: the client trains on the loss of a small auxiliary head at the cut (arXiv 2601.19261)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ..auxiliary import AuxiliaryOptions, add_auxiliary, forward_share
from ..client import Client, Record
from ..cut import Smashed
from ..greedy import Greedy, freeze_first, names
from ..program import Sends
from ..task import Batch
from ..wire import Exchange


@dataclass(frozen=True)
class AuxiliaryLossOptions(AuxiliaryOptions):
    """The auxiliary head, and what more is sent or asked for."""

    lambda_weight: Annotated[float, "weight of the server's gradient at the cut; 0: nothing comes back"] = 0.0
    lambda_every: Annotated[int, "the server's gradient is asked for on every k-th step"] = 1
    lambda_compensate: Annotated[bool, "multiply that gradient by lambda_every, so that its time average stays"] = False
    send_every: Annotated[int, "activations are sent on every h-th step of a round"] = 1
    backward_share: Annotated[
        float, "share of every batch that the client's backward pass takes; the rest is computed without a graph and only sent"
    ] = 1.0
    server_cuts: Annotated[
        str, "blocks after which the server's part is cut again; each piece but the last trains on a head of its own"
    ] = ""
    repeat_steps: Annotated[bool, "the authors' code: of n parts, part i (from 0) steps n - i times on one batch"] = False
    freeze_first: Annotated[bool, "the authors' code: a head's first linear layer stays as drawn, unless of 64 inputs"] = False


class AuxiliaryLoss:
    """z up, local loss, one update; the server learns from z and answers nothing.

    Where the paper's text says that lambda scales the auxiliary loss, its formula scales the server's: the formula is taken.
    The head trains on the weighted sum like the bottom does. Its period is a parameter of its own.

    With `backward_share` f, which is ours, a client computes (1 + 2f)/3 of what a conventional one does, and f of its head's part; it
    keeps f of the activations. Batch norm sees two smaller batches.
    """

    Options: ClassVar[type] = AuxiliaryLossOptions
    needs_labels: ClassVar[bool] = False
    record_names: ClassVar[tuple[str, ...]] = ("auxiliary_loss", "decoder_loss")

    def __init__(self, options: AuxiliaryLossOptions, client: Client) -> None:
        self.options, self.seen = options, 0
        self.times = 2 + len(names(options.server_cuts)) if options.repeat_steps else 1
        add_auxiliary(options, client)
        if options.freeze_first:
            freeze_first(client.modules["auxiliary"])

    @staticmethod
    def comes_back(options: AuxiliaryLossOptions) -> bool:
        return options.lambda_weight != 0

    @staticmethod
    def sends(options: AuxiliaryLossOptions, round: int, step: int, seen: int) -> Sends:
        """Return whether a step sends activations, and whether it asks for their gradient."""
        asks = options.lambda_weight != 0 and seen % options.lambda_every == 0
        return Sends(asks or step % options.send_every == 0, asks)

    @staticmethod
    def server_part(options: AuxiliaryLossOptions) -> Greedy | None:
        return Greedy(options) if names(options.server_cuts) else None

    def local(self, client: Client, z: Smashed, batch: Batch) -> tuple[Tensor | None, Record]:
        """Return the weighted local loss (None if nothing is weighted) and its terms."""
        weights = {"auxiliary": self.options.aux_weight, "decoder": self.options.reconstruction_weight}
        terms = {name: client.loss(name, z, batch) for name in client.losses if weights[name]}
        total = torch.stack([weights[name] * term.float() for name, term in terms.items()]).sum() if terms else None
        return total, {f"{name}_loss": term.detach() for name, term in terms.items()}

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        o, t = self.options, self.seen
        self.seen += 1
        z, sent, own = forward_share(client, batch, o.backward_share)
        sends, asks = self.sends(o, client.round, client.step, t)
        reply = None
        if sends:
            reply = yield from client.uplink(sent, batch, gradient=asks)
        loss, record = self.local(client, z, own)
        if reply is None:
            client.update(loss, times=self.times)
        else:
            weight = o.lambda_weight * (o.lambda_every if o.lambda_compensate else 1)
            client.update(loss, z, {role: weight * grad for role, grad in reply.tensors.items()}, self.times)
        return record

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]
