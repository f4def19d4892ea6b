"""Networks that guess the gradient at the cut from the activations and the labels (Jaderberg et al., arXiv 1608.05343)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadInput
from ..task import Task
from .blocks import Entry, builder, conv3x3


class Regressor(nn.Module):
    """Activations (N, *cut) and labels (N,) to a gradient (N, *cut), zero before it has learned anything.

    Labels go in one-hot: as channels of a map, as entries of a vector or of each token. Where `num_classes` is 0 they are not used.
    """

    def __init__(self, layers: nn.Module, num_classes: int, flat: bool = False) -> None:
        super().__init__()
        self.layers, self.num_classes, self.flat = layers, num_classes, flat
        last = [m for m in layers.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        x = z.flatten(1) if self.flat else z
        if self.num_classes:
            y = torch.zeros(len(z), dtype=torch.long, device=z.device) if y is None else y
            if y.shape != z.shape[:1] or y.is_floating_point():
                raise BadInput(f"labels of shape {tuple(y.shape)} and {y.dtype} are no classes; set conditioned = false")
            label = F.one_hot(y, self.num_classes).to(x.dtype)
            if x.dim() == 4:
                x = torch.cat([x, label[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
            else:
                x = torch.cat([x, label.view(len(x), *[1] * (x.dim() - 2), -1).expand(*x.shape[:-1], -1)], -1)
        return self.layers(x).view(z.shape)


def linear(task: Task, num_classes: int, width: int) -> nn.Module:
    """Return one linear map of all activations and the label."""
    size = math.prod(task.cut_shape)
    return Regressor(nn.Linear(size + num_classes, size), num_classes, flat=True)


def deep(task: Task, num_classes: int, width: int) -> nn.Module:
    """Return three 3x3 convolutions of `width` with batch norm, or for vectors and tokens three linear layers with layer norm."""
    size = task.cut_shape[0] if len(task.cut_shape) == 3 else task.cut_shape[-1]
    layers: list[nn.Module] = []
    before = size + num_classes
    for _ in range(2):
        if len(task.cut_shape) == 3:
            layers += [conv3x3(before, width), nn.BatchNorm2d(width), nn.ReLU()]
        else:
            layers += [nn.Linear(before, width), nn.LayerNorm(width), nn.ReLU()]
        before = width
    last = nn.Conv2d(width, size, 3, padding=1) if len(task.cut_shape) == 3 else nn.Linear(width, size)
    return Regressor(nn.Sequential(*layers, last), num_classes)


REGRESSORS: dict[str, Entry] = {
    "linear": Entry(linear, "one linear map of activations and label"),
    "deep": Entry(deep, "three convolutions with the label as channels; three linear layers for vectors and tokens"),
}


def build_regressor(name: str, task: Task, *, conditioned: bool, width: int) -> nn.Module:
    """Return the named regressor of the gradient at the cut; raises BadInput for an unknown name, with the legal ones."""
    return builder("regressor", name, REGRESSORS)(task, task.num_classes if conditioned else 0, width)
