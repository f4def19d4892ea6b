"""Fewer rows for a batch than it has samples, and how a gradient of those rows comes back to the samples."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from torch import Tensor

from .cut import Smashed
from .wire import Message

Back = Callable[[Tensor], Tensor]


class Reduced(NamedTuple):
    """What crosses instead of a batch, by role, its targets, and what turns a gradient of its rows into the samples'."""

    tensors: dict[str, Tensor]
    y: Tensor
    back: Back


class Reducer(Protocol):
    """Merges the rows of a batch before they are sent."""

    def rows(self, n: int) -> int: ...
    def reduce(self, z: Smashed, y: Tensor, num_classes: int) -> Reduced: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


def spread(answer: Message | None, back: Back | None) -> Message | None:
    """Give each sample its share of the gradient that a reply brings."""
    if answer is None or back is None or "cut_grad" not in answer.tensors:
        return answer
    return replace(answer, tensors={**answer.tensors, "cut_grad": back(answer.tensors["cut_grad"].float())})
