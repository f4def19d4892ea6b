"""What a client trains at the cut beside its bottom: an auxiliary head, and a decoder that keeps input information."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .cut import Smashed, unharmed
from .errors import BadInput
from .models.heads import build_decoder, build_head
from .task import Batch, Task

if TYPE_CHECKING:
    from .client import Client


@dataclass(frozen=True)
class HeadOptions:
    """The head at the cut."""

    auxiliary: Annotated[str, "the head at the cut (cutlayer list heads)"] = "mlp"
    auxiliary_depth: Annotated[int, "hidden layers of the mlp head"] = 3
    auxiliary_width: Annotated[int, "width of the mlp head's hidden layers"] = 256


@dataclass(frozen=True)
class AuxiliaryOptions(HeadOptions):
    """The head at the cut, the decoder beside it, and the weights of their losses."""

    aux_weight: Annotated[float, "weight of the head's loss; 0: it is not computed"] = 1.0
    reconstruction: Annotated[
        Literal["none", "conv2", "conv1x1"], "decoder of the input from the activations: none, conv2 (two 3x3), conv1x1"
    ] = "none"
    reconstruction_weight: Annotated[float, "weight of the reconstruction's loss"] = 5.0


def add_auxiliary(options: AuxiliaryOptions, client: "Client") -> None:
    """Add the head, and the decoder if there is one, to a client; both travel with its bottom."""
    client.add("auxiliary", head_of(options, client.task), auxiliary_loss)
    if options.reconstruction != "none":
        client.add("decoder", build_decoder(options.reconstruction, client.task), reconstruction_loss)


def head_of(options: HeadOptions, task: Task) -> nn.Module:
    """Return the auxiliary head that options name."""
    return build_head(options.auxiliary, task, depth=options.auxiliary_depth, width=options.auxiliary_width)


def forward_share(client: "Client", batch: Batch, share: float) -> tuple[Smashed, Smashed, Batch]:
    """Return the smashed data (n, *cut) that have a graph, those of the whole batch (N, *cut) in its order, and the former's samples.

    n is N times the share, rounded up; the others are computed without a graph. No sample is left alone on either side, for the sake of
    BatchNorm. Raises BadInput where rows are not samples.
    """
    n = max(2, math.ceil(share * len(batch.y) - 1e-9))
    if n >= len(batch.y) - 1:
        z = client.forward(batch)
        return z, z, batch
    if any(len(tensor) != len(batch.y) for tensor in (batch.x, *batch.inputs.values())):
        raise BadInput(f"backward_share = {share}: a graph's rows are nodes, not samples; take 1")
    own, others = batch.split(n)
    more = client.forward(others, graph=False, draws="bottom of the others")
    z = client.forward(own)
    return z, z.followed_by(more), own


def auxiliary_loss(head: nn.Module, z: Smashed, batch: Batch, task: Task) -> Tensor:
    """Return the task's loss of the head's own prediction."""
    return task.loss(z.into(head), batch.y)


def reconstruction_loss(decoder: nn.Module, z: Smashed, batch: Batch, task: Task) -> Tensor:
    """Return the binary cross-entropy of the decoded logits against the input in [0, 1], as the network saw it."""
    return F.binary_cross_entropy_with_logits(z.into(decoder).float(), task.to_unit(batch.x))


def squared_error(module: nn.Module, z: Smashed, batch: Batch, task: Task) -> Tensor:
    """Return the mean squared error of the guess; the batch's x is the true gradient."""
    return F.mse_loss(unharmed(z.main, lambda main: module(main, batch.y)).float(), batch.x.float())
