"""Auxiliary networks: small classifiers that train the bottom from what it would send, without the server."""

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadInput
from ..task import Task
from .blocks import BasicBlock, Entry, builder, chain, check_shape, conv_bn_relu, global_pool
from .decoders import build_decoder as build_decoder
from .gin import Graph
from .transformer import Block, Classifier, NextToken, masked_mean

# Without later stages the width is doubled, up to here: two doublings from 512 would cost 75 million parameters.
WIDEST = 512
PLACES = 8  # of a side of a map, between which a head attends


class OfTokens(nn.Module):
    """A head on the mean over tokens, (N, T, D) and where there is one a mask (N, T) of those that count."""

    takes_others = True

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor, mask: Tensor | None = None, **others: Tensor) -> Tensor:
        output: Tensor = self.head(z.mean(1) if mask is None else masked_mean(z, mask))
        return output


class OfPositions(nn.Module):
    """A head at every position, (N, T, D) to (N, C, T)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor) -> Tensor:
        n, t, d = z.shape
        output: Tensor = self.head(z.reshape(n * t, d)).view(n, t, -1).transpose(1, 2)
        return output


class OfGraphs(nn.Module):
    """A head on the sum over each graph's nodes, (all nodes, D) and their counts "nodes" (N,) to what it gives for (N, D)."""

    takes_others = True

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor, nodes: Tensor, **others: Tensor) -> Tensor:
        output: Tensor = self.head(Graph(nodes).pool(z))
        return output


class Reshaped(nn.Module):
    """A head whose outputs (N, width) get the shape of the network's, (N, *shape)."""

    def __init__(self, head: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.head, self.shape, self.takes_others = head, shape, getattr(head, "takes_others", False)

    def forward(self, z: Tensor, **others: Tensor) -> Tensor:
        output: Tensor = self.head(z, **others)
        return output.reshape(-1, *self.shape)


class ChannelsLast(nn.Module):
    """A head at every position whose outputs (N, C, T) become (N, T, C)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.takes_others = head, getattr(head, "takes_others", False)

    def forward(self, z: Tensor, **others: Tensor) -> Tensor:
        output: Tensor = self.head(z, **others)
        return output.transpose(1, 2)


class Attending(nn.Module):
    """A transformer block and the classifier behind it: tokens (N, T, D), with `causal` each looking back only and (N, C, T).

    A map (N, C, H, W) is averaged to at most 8x8 places that are its tokens, a vector (N, D) is one.
    """

    takes_others = True

    def __init__(self, width: int, num_classes: int, causal: bool) -> None:
        super().__init__()
        self.block = Block(width, next(n for n in (4, 2, 1) if width % n == 0), causal)
        self.classifier = (NextToken if causal else Classifier)(width, num_classes)

    def forward(self, z: Tensor, mask: Tensor | None = None, **others: Tensor) -> Tensor:
        if z.dim() == 4:
            h, w = (min(PLACES, side) for side in z.shape[2:])
            z = F.adaptive_avg_pool2d(z, (h, w)).flatten(2).transpose(1, 2)
        tokens = z[:, None] if z.dim() == 2 else z
        seen = torch.ones(tokens.shape[:2], dtype=torch.bool, device=z.device) if mask is None else mask
        output: Tensor = self.classifier(self.block(tokens, seen), seen)
        return output


def _is_map(task: Task) -> bool:
    if len(task.cut_shape) > 3:
        raise BadInput(
            f"only the auxiliary head 'linear' takes activations of shape {task.cut_shape}; use it, or cut where they "
            "are a vector (D,), a sequence (T, D) or maps (C, H, W)"
        )
    return len(task.cut_shape) == 3


def _doubled(width: int) -> int:
    return min(2 * width, max(width, WIDEST))


def _stage_widths(task: Task) -> tuple[int, ...]:
    once = _doubled(task.cut_shape[0])
    return task.later_stages or (once, _doubled(once))


def _classifier(layers: Iterable[tuple[str, nn.Module]], channels: int, task: Task) -> nn.Module:
    return chain([*layers, ("pool", global_pool()), ("linear", nn.Linear(channels, task.head_width))])


def _perceptron(task: Task, hidden: int) -> nn.Module:
    features = task.cut_shape[-1]
    if features < 2:
        raise BadInput("a layer norm makes one feature constant; use the auxiliary head 'linear' for this cut")
    layers = [nn.LayerNorm(features), nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, task.head_width)]
    return nn.Sequential(*layers)


def linear(task: Task, depth: int, width: int) -> nn.Module:
    """Return flattening and one linear layer, as the text of arXiv 2601.19261; it diverged at learning rate 0.1."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(task.cut_shape), task.head_width))


def pool_linear(task: Task, depth: int, width: int) -> nn.Module:
    """Return the mean over positions or tokens and one linear layer."""
    if _is_map(task):
        return _classifier([], task.cut_shape[0], task)
    return nn.Sequential(nn.Linear(task.cut_shape[-1], task.head_width))


def mlp(task: Task, depth: int, width: int) -> nn.Module:
    """Return pooling to 2x2 (a mean over tokens), `depth` times linear, batch norm and ReLU of `width`, a linear layer.

    The head of the authors' code for arXiv 2601.19261; theirs left its first layer, made on first use, out of the
    optimizer, ours is sized from the cut. Raises BadInput unless depth and width are positive.
    """
    if depth < 1 or width < 1:
        raise BadInput(f"auxiliary head 'mlp' needs depth and width of 1 or more, not {depth}, {width}; or pool_linear")
    layers: list[nn.Module] = []
    features = task.cut_shape[-1]
    if _is_map(task):
        # A smaller map keeps its size: stretching it to 2x2 would only repeat its values.
        sides = (min(2, task.cut_shape[1]), min(2, task.cut_shape[2]))
        layers += [nn.AdaptiveAvgPool2d(sides), nn.Flatten()]
        features = task.cut_shape[0] * sides[0] * sides[1]
    for _ in range(depth):
        layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, task.head_width))


def _thin_blocks(task: Task) -> list[tuple[str, nn.Module]]:
    channels, *_ = task.cut_shape
    layers: list[tuple[str, nn.Module]] = []
    for number, width in enumerate(_stage_widths(task), 1):
        layers.append((f"block{number}", BasicBlock(channels, width, 2)))
        channels = width
    return layers


def block(task: Task, depth: int, width: int) -> nn.Module:
    """Return a residual block of stride 2 and that stage's width per later stage, global pooling and a linear layer.

    Without later stages: two blocks that double the width, not past 512. Vectors (D,) and, after the mean over tokens,
    sequences (T, D): layer norm, linear to D, GELU, linear.
    """
    if not _is_map(task):
        return _perceptron(task, task.cut_shape[-1])
    return _classifier(_thin_blocks(task), _stage_widths(task)[-1], task)


def lite(task: Task, depth: int, width: int) -> nn.Module:
    """Return `block` behind average pooling by 2, a quarter of its cost; for vectors and sequences half as wide."""
    if not _is_map(task):
        return _perceptron(task, max(1, task.cut_shape[-1] // 2))
    # An axis of length 1 has nothing left to pool.
    by = (min(2, task.cut_shape[1]), min(2, task.cut_shape[2]))
    return _classifier([("shrink", nn.AvgPool2d(by)), *_thin_blocks(task)], _stage_widths(task)[-1], task)


def wide(task: Task, depth: int, width: int) -> nn.Module:
    """Return a 3x3 convolution of stride 2 and a residual block per later stage, global pooling and a linear layer.

    The first width is twice the cut's and at least 64, each next one the double, not past 512 if the cut is not; for
    ResNet-20 64 and 128 at the shallow cut, 64 at the deep one. Vectors and sequences: `block` four times as wide.
    """
    if not _is_map(task):
        return _perceptron(task, 4 * task.cut_shape[-1])
    channels = task.cut_shape[0]
    layers: list[tuple[str, nn.Module]] = []
    for number in range(1, len(_stage_widths(task)) + 1):
        broad = max(64, _doubled(channels))
        layers.append((f"down{number}", chain(conv_bn_relu(channels, broad, 2))))
        layers.append((f"block{number}", BasicBlock(broad, broad)))
        channels = broad
    return _classifier(layers, channels, task)


def attention(task: Task, depth: int, width: int) -> nn.Module:
    """Return a transformer block as wide as the cut and the classifier of a transformer: what lies behind the cut of a text."""
    features = task.cut_shape[0 if _is_map(task) else -1]
    if features < 2:
        raise BadInput("a layer norm makes one feature constant; use the auxiliary head 'linear' for this cut")
    return Attending(features, task.head_width, task.per_position)


HEADS: dict[str, Entry] = {
    "linear": Entry(linear, "flatten and one linear layer: the paper's text"),
    "pool_linear": Entry(pool_linear, "mean over positions or tokens and one linear layer"),
    "mlp": Entry(mlp, "2x2 pooling and hidden layers with batch norm: the authors' code"),
    "lite": Entry(lite, "average pooling by 2, then as block: a quarter of its cost"),
    "block": Entry(block, "one thin residual block per stage behind the cut"),
    "wide": Entry(wide, "a convolution and a residual block, at least 64 wide, per stage behind the cut"),
    "attention": Entry(attention, "a transformer block: for texts, whose words the others do not bring together"),
}
WHOLE = (attention,)  # take a sequence as it is; the others its mean, or each of its positions


def build_head(name: str, task: Task, *, depth: int = 3, width: int = 256) -> nn.Module:
    """Return the named auxiliary head, activations (N, *task.cut_shape) to outputs (N, *task.output_shape).

    `depth` and `width` are the hidden layers of `mlp`; the others take their sizes from the cut. A head from outside is called
    with the same arguments and gives its outputs their shape itself. Raises BadInput for an unknown name, with the legal ones,
    for a cut that the head cannot take, and for outputs that are maps.
    """
    build = builder("auxiliary", name, HEADS)
    check_shape(task.cut_shape, "task.cut_shape", "set it to the shape of one sample's activations at the cut")
    if name in HEADS:
        _refuse_dense(name, task)
    per_token = len(task.cut_shape) == 2 and build not in WHOLE
    head = build(replace(task, cut_shape=task.cut_shape[1:]) if per_token else task, depth, width)
    if name in HEADS and not task.per_position and task.output_shape not in (None, (task.head_width,)):
        head = Reshaped(head, task.output_shape or ())
    if per_token:
        head = OfPositions(head) if task.per_position else OfTokens(head)
    if task.per_position and task.position_axis == 1:
        head = ChannelsLast(head)
    return OfGraphs(head) if task.ragged else head


def _refuse_dense(name: str, task: Task) -> None:
    """Raise BadInput if the network's outputs are maps, or stand at positions that the cut does not have."""
    shape = task.output_shape or ()
    elsewhere = task.per_position and shape and task.cut_shape[:-1] != (shape[task.position_axis - 1],)
    if len(shape) > 2 or elsewhere:
        raise BadInput(
            f"auxiliary head {name!r}: the network's outputs are dense, of shape {shape} a sample, and there are no dense heads yet; "
            "take method backprop, or a head of your own (package.module:object) whose outputs have that shape"
        )
