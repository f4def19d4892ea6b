"""What a client trains at the cut beside its bottom: an auxiliary head, and a decoder that keeps input information."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .cut import Smashed
from .models.heads import build_decoder, build_head
from .task import Batch, Task

if TYPE_CHECKING:
    from .client import Client


@dataclass(frozen=True)
class AuxiliaryOptions:
    """auxiliary: the head's name (`cutlayer list heads`); auxiliary_depth, auxiliary_width: of the mlp head.

    reconstruction: none, or the decoder of the input (conv2 | conv1x1); aux_weight, reconstruction_weight: of the two losses.
    """

    auxiliary: str = "mlp"
    auxiliary_depth: int = 3
    auxiliary_width: int = 256
    aux_weight: float = 1.0
    reconstruction: Literal["none", "conv2", "conv1x1"] = "none"
    reconstruction_weight: float = 5.0


def add_auxiliary(options: AuxiliaryOptions, client: "Client") -> None:
    """Add the head, and the decoder if there is one, to a client; both travel with its bottom."""
    task = client.task
    head = build_head(options.auxiliary, task, depth=options.auxiliary_depth, width=options.auxiliary_width)
    client.add("auxiliary", head, auxiliary_loss)
    if options.reconstruction != "none":
        client.add("decoder", build_decoder(options.reconstruction, task), reconstruction_loss)


def auxiliary_loss(head: nn.Module, z: Smashed, batch: Batch, task: Task) -> Tensor:
    """Return the task's loss of the head's own prediction."""
    return task.loss(head(z.main), batch.y)


def reconstruction_loss(decoder: nn.Module, z: Smashed, batch: Batch, task: Task) -> Tensor:
    """Return the binary cross-entropy of the decoded logits against the input in [0, 1], as the network saw it."""
    return F.binary_cross_entropy_with_logits(decoder(z.main).float(), task.to_unit(batch.x))
