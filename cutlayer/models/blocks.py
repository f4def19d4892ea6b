"""What the models and the networks built at the cut share: named blocks, the basic residual block, pooling."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadInput
from ..named import find, made


class Entry(NamedTuple):
    """A row of a table: what builds the module, and one line that says what it is."""

    build: Callable[..., nn.Module]
    line: str


def builder(kind: str, name: str, table: Mapping[str, Entry]) -> Callable[..., nn.Module]:
    """Return what builds the module of that name: a row's, or an object from outside that is called as the rows are.

    Raises BadInput for an unknown name, with the nearest and all legal names.
    """
    row = find(kind, name, table)
    return row.build if isinstance(row, Entry) else partial(made, kind, name, row, nn.Module)


def check_shape(shape: tuple[int, ...], what: str, remedy: str) -> None:
    """Raise BadInput unless shape holds at least one axis and every axis is a positive integer."""
    if not shape or any(not isinstance(side, int) or side < 1 for side in shape):
        raise BadInput(f"{what} {shape} is not a shape of positive sides; {remedy}")


def chain(blocks: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """Return the named modules in a row."""
    return nn.Sequential(OrderedDict(blocks))


class Blocks(nn.Sequential):
    """A model as a row of named blocks, with its customary cuts (name to block path) and the widths of its stages.

    Stages are the children stage1, stage2, ...; the arguments beyond the first have defaults because slicing a
    Sequential calls its class with the blocks alone.
    """

    def __init__(
        self,
        blocks: Iterable[tuple[str, nn.Module]] | Mapping[str, nn.Module],
        cuts: Mapping[str, str] | None = None,
        widths: tuple[int, ...] = (),
    ) -> None:
        super().__init__(OrderedDict(blocks))
        self.cuts: dict[str, str] = dict(cuts or {})
        self.widths = widths


class GreyToColour(nn.Module):
    """Repeat a grey image (N, 1, H, W) as three equal channels and pass colour images (N, 3, H, W) on unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        # Three channels stay as they are; no branch, so that torch.fx can trace a model that holds this one.
        return x.expand(-1, 3, -1, -1)


def image_input(in_channels: int) -> list[tuple[str, nn.Module]]:
    """Return the modules in front of a first convolution: for three channels the one that lets grey images in."""
    return [("colour", GreyToColour())] if in_channels == 3 else []


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without bias, to be followed by a batch norm."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)


def conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> list[tuple[str, nn.Module]]:
    """Return a 3x3 convolution without bias, a batch norm and a ReLU, named."""
    conv = conv3x3(in_channels, out_channels, stride)
    return [("conv", conv), ("bn", nn.BatchNorm2d(out_channels)), ("relu", nn.ReLU())]


def global_pool() -> nn.Sequential:
    """Return the mean over all positions, (N, C, H, W) to (N, C)."""
    return chain([("mean", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())])


class PaddedSubsample(nn.Module):
    """Shortcut "option A" of He et al. 2016: every stride-th pixel, new channels zero on both sides, no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        self.padding = (before, out_channels - in_channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut, (N, C, H, W) to (N, width, H/stride, W/stride), >= 0.

    The shortcut is the identity where shapes agree; else padded subsampling, or a 1x1 convolution if `projected` (He et
    al. 2016, options A and B).
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1, projected: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if (in_channels, stride) != (width, 1):
            if projected:
                conv = nn.Conv2d(in_channels, width, 1, stride, bias=False)
                self.shortcut = chain([("conv", conv), ("bn", nn.BatchNorm2d(width))])
            else:
                self.shortcut = PaddedSubsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm around a shortcut, (N, C, H, W) to (N, width, H/stride, W/stride), >= 0.

    The inner width is a quarter; the shortcut a 1x1 convolution where shapes differ (He et al. 2016, option B).
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        inner = width // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if (in_channels, stride) != (width, 1):
            conv = nn.Conv2d(in_channels, width, 1, stride, bias=False)
            self.shortcut = chain([("conv", conv), ("bn", nn.BatchNorm2d(width))])

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        return F.relu(self.bn3(self.conv3(inner)) + self.shortcut(x))
