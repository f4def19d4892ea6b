"""Fewer rows for a batch than it has samples, and how a gradient of those rows comes back to the samples."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from .wire import Message


class Reducer(Protocol):
    """Fewer rows for a batch: what crosses, its targets, and each sample's share (N, K) of the K rows; and its state."""

    def reduce(
        self, tensors: Mapping[str, Tensor], y: Tensor, num_classes: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]: ...
    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


def spread(answer: Message | None, share: Tensor | None) -> Message | None:
    """Give each sample its share (N, K) of the gradient of K rows that a reply brings."""
    if answer is None or share is None or "cut_grad" not in answer.tensors:
        return answer
    gradient = answer.tensors["cut_grad"]
    mine = (share @ gradient.float().reshape(len(gradient), -1)).view(len(share), *gradient.shape[1:])
    return replace(answer, tensors={**answer.tensors, "cut_grad": mine})
