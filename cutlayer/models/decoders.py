"""Decoders: rebuild the input from what the bottom would send, so that its training keeps what the input holds."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadInput
from ..task import Task
from .blocks import Entry, builder, chain, check_shape, conv_bn_relu


class Nearest(nn.Module):
    """Enlarge or shrink maps to the given height and width by copying the nearest position."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=self.size, mode="nearest")


def _between_vectors(task: Task) -> nn.Module:
    layer = nn.Linear(math.prod(task.cut_shape), math.prod(task.input_shape))
    return chain([("flatten", nn.Flatten()), ("linear", layer), ("shape", nn.Unflatten(1, task.input_shape))])


def _between_maps(task: Task) -> bool:
    return len(task.cut_shape) == 3 and len(task.input_shape) == 3


def conv2(task: Task) -> nn.Module:
    """Return a 3x3 convolution to 12 channels, batch norm, ReLU, one to the image's channels, and nearest enlargement.

    Any size of image; where input or activation is not a map: one linear layer.
    """
    if not _between_maps(task):
        return _between_vectors(task)
    colours, height, width = task.input_shape
    layers = conv_bn_relu(task.cut_shape[0], 12)
    return chain([*layers, ("last", nn.Conv2d(12, colours, 3, padding=1)), ("enlarge", Nearest(height, width))])


def conv1x1(task: Task) -> nn.Module:
    """Return one 1x1 convolution to the image's channels, with a pixel shuffle by r where the cut is r times smaller.

    Where input or activation is not a map: one linear layer. Raises BadInput unless both axes are r times smaller.
    """
    if not _between_maps(task):
        return _between_vectors(task)
    colours, height, width = task.input_shape
    channels, *cut = task.cut_shape
    ratio = height // cut[0]
    if ratio < 1 or [ratio * side for side in cut] != [height, width]:
        raise BadInput(
            f"decoder 'conv1x1' needs an image a whole number of times larger than the cut, on both axes alike, not "
            f"{height}x{width} from {cut[0]}x{cut[1]}; use the decoder 'conv2'"
        )
    layers: list[tuple[str, nn.Module]] = [("conv", nn.Conv2d(channels, colours * ratio**2, 1))]
    return chain(layers + ([("shuffle", nn.PixelShuffle(ratio))] if ratio > 1 else []))


DECODERS: dict[str, Entry] = {
    "conv2": Entry(conv2, "two 3x3 convolutions and nearest enlargement"),
    "conv1x1": Entry(conv1x1, "one 1x1 convolution and a pixel shuffle: nearly free"),
}


def build_decoder(name: str, task: Task) -> nn.Module:
    """Return the named decoder, activations (N, *task.cut_shape) to logits of the input (N, *task.input_shape).

    Raises BadInput for an unknown name, with the legal ones, and for sizes that the decoder cannot join.
    """
    if task.ragged:
        raise BadInput(
            f"decoder {name!r} rebuilds samples of one shape, and here each node has a row; set reconstruction = none"
        )
    build = builder("decoder", name, DECODERS)
    check_shape(task.cut_shape, "task.cut_shape", "set it to the shape of one sample's activations at the cut")
    check_shape(task.input_shape, "task.input_shape", "set it to the shape of one sample's input")
    return build(task)
