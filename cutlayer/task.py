"""What is learned: the loss, the metrics, and the shapes that parts built at the cut need to know."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import BadInput
from .rows import Layout


class Batch(NamedTuple):
    """A mini-batch: inputs (N, ...), targets (N, ...), further inputs of the bottom by name, sample numbers (N,)."""

    x: Tensor
    y: Tensor
    inputs: Mapping[str, Tensor] = {}
    ids: Tensor | None = None

    def split(self, n: int) -> "tuple[Batch, Batch]":
        """Return the first n samples and the others."""
        ways = (slice(None, n), slice(n, None))
        first, others = (
            Batch(
                self.x[way],
                self.y[way],
                {k: v[way] for k, v in self.inputs.items()},
                None if self.ids is None else self.ids[way],
            )
            for way in ways
        )
        return first, others


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """Return the batch mean of the cross-entropy of logits (N, C, ...) against classes (N, ...)."""
    return F.cross_entropy(output.float(), y)


def accuracy(output: Tensor, y: Tensor) -> float:
    """Return the share of samples whose largest logit (N, C) is at the target class (N,)."""
    return float((output.argmax(1) == y).double().mean())


@dataclass(frozen=True)
class Task:
    """A loss (a mean over the batch), metrics over a whole evaluation set, and the shapes at the cut.

    `metrics` maps a name to a function of all outputs (n, ...) and all targets (n, ...); the first is the one that reports
    call accuracy, and `higher_is_better` says which of its values is the peak. Shapes are per sample, without the batch
    axis; `run` fills them in. `later_stages` holds the widths of the model's stages that lie wholly behind the cut.
    `ragged`: what crosses has a row for each node of a graph, not for each sample, and "nodes" (N,) beside it says how many.
    `per_position`: outputs (N, C, T) stand for T targets each. `to_unit` maps a batch of inputs to [0, 1], for reconstruction.
    `output_shape`: the network's output for one sample, which a head's output must have too; None: (num_classes,).
    `position_axis`: the axis of T in the batch's output, 2, or 1 for (N, T, C). `layouts`: the axes of x, inputs/<name>,
    output, and of each role that crosses.
    """

    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    metrics: Mapping[str, Callable[[Tensor, Tensor], float]] = field(default_factory=lambda: {"accuracy": accuracy})
    higher_is_better: bool = True
    num_classes: int = 10
    input_shape: tuple[int, ...] = ()
    cut_shape: tuple[int, ...] = ()
    later_stages: tuple[int, ...] = ()
    ragged: bool = False
    per_position: bool = False
    to_unit: Callable[[Tensor], Tensor] = torch.sigmoid
    output_shape: tuple[int, ...] | None = None
    position_axis: int = 2
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    @property
    def logits(self) -> bool:
        """Whether outputs are logits of classes."""
        return self.loss is cross_entropy

    @property
    def head_width(self) -> int:
        """Number of values that a head computes for a sample, or for each position of one."""
        if self.output_shape is None:
            return self.num_classes
        return self.output_shape[2 - self.position_axis] if self.per_position else math.prod(self.output_shape)

    @property
    def cut_axis(self) -> int:
        """Batch axis of `main` at the cut."""
        found = self.layouts.get("smashed")
        return (found.axis or 0) if found else 0

    def __post_init__(self) -> None:
        if not self.metrics:
            raise BadInput("a task without metrics cannot be evaluated; give at least one, or leave metrics out for accuracy")
