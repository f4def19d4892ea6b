"""The batch axis of a tensor, and the joining of rows along it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import BadInput

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """The shapes of one tensor in two batches of different sizes, and what they say about its axes.

    `axis` is the axis whose size is the number of samples, or None. `ragged`: the first axis has another size in another batch,
    but not the number of samples (nodes of graphs). `fixed`: no further axis changes its size.
    """

    few: Shape
    many: Shape
    axis: int | None
    ragged: bool
    fixed: bool

    @property
    def sample_shape(self) -> Shape:
        """Sizes without the batch axis, or without the first axis of a ragged tensor."""
        axis = self.axis or 0
        return self.few[:axis] + self.few[axis + 1 :]

    @property
    def fault(self) -> str | None:
        """Why rows of this tensor can be neither joined nor split, or None."""
        if self.axis:
            return f"its batch is axis {self.axis}, not axis 0"
        if self.axis is None and not self.ragged:
            return "it has no batch axis"
        return None if self.fixed else "its further sizes differ from batch to batch"

    def fits(self, shape: Shape, num_samples: int) -> bool:
        """Return whether the tensor may have this shape in a batch of so many samples."""
        if not self.fixed:
            return len(shape) == len(self.few)
        if self.axis is None:
            return len(shape) == len(self.few) and tuple(shape[1:]) == self.few[1:]
        return tuple(shape) == (*self.few[: self.axis], num_samples, *self.few[self.axis + 1 :])


def compare_layouts(few: Tensor, many: Tensor, sizes: tuple[int, int]) -> Layout:
    """Return the layout of a tensor, from its values for batches of `sizes` = (fewer, more) samples."""
    a, b = tuple(few.shape), tuple(many.shape)
    if len(a) != len(b):
        return Layout(a, b, None, False, False)
    changed = [i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]]
    axis = next((i for i in changed if (a[i], b[i]) == sizes), None)
    ragged = axis is None and changed[:1] == [0]
    return Layout(a, b, axis, ragged, not set(changed) - {0 if ragged else axis})


def join_rows(tensors: Sequence[Tensor], name: str) -> Tensor:
    """Concatenate tensors along axis 0; raises BadInput if their further sizes differ."""
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise BadInput(
            f"{name!r} of shapes {shapes}: rows of unlike sizes cannot be joined; pad all samples to one size, "
            "or drop server_order = 'concatenated', backward_share and fsl_sage"
        )
    return torch.cat(list(tensors))
