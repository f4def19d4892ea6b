"""Where batches come from: tensors in memory, or any map-style data set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate


from ..task import Batch


class Source(Protocol):
    """One split of a data set; `batch` augments if it is given a generator."""

    labels: Tensor
    num_classes: int
    input_shape: tuple[int, ...]
    held_out: "Source | None"

    def __len__(self) -> int: ...
    def batch(self, index: Tensor, generator: torch.Generator | None) -> Batch: ...
    def to_unit(self, x: Tensor) -> Tensor: ...


@dataclass
class Tensors:
    x: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    held_out: Source | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def sample_bytes(self) -> int:
        return self.x[0].numel() * self.x.element_size()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> Batch:
        index = index.to(self.x.device)
        x = self.x[index]
        if x.dtype == torch.uint8:
            x = x.float().div_(255)
        if self.mean:
            shape = (1, -1) + (1,) * (x.dim() - 2)
            x = (x - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)
        if self.augment is not None and generator is not None:
            x = self.augment(x, generator)
        return Batch(x, self.labels[index], ids=index)

    def to_unit(self, x: Tensor) -> Tensor:
        return x


@dataclass
class Data:
    name: str
    train: Source
    test: Source
    num_classes: int
    release: str = ""


def from_datasets(train: Any, test: Any, num_classes: int, name: str = "own") -> Data:
    def tensors(dataset: Any, held_out: Source | None) -> Tensors:
        x, y = default_collate([dataset[i] for i in range(len(dataset))])
        return Tensors(x, y, num_classes, held_out=held_out)

    after = tensors(test, None)
    return Data(name, tensors(train, after), after, num_classes)
