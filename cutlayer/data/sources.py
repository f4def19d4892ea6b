"""Where batches come from: tensors in memory, or any map-style data set of the user's own."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..errors import BadInput
from ..streams import self_contained
from ..task import Batch
from .metadata import UNKNOWN, Metadata, with_class_names

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Source(Protocol):
    """One split of a data set, on one device.

    `labels` (n, ...) are all targets; `batch(index, generator)` gives x (B, ...) as floats, augmented if there is a generator;
    `to_unit` undoes the normalisation of a batch; `held_out` is the split that this one is evaluated on. A source may also have
    `normalisation`, the constants (mean, std) per channel that inputs are normalised with, and `vocabulary`, the number of tokens.
    """

    labels: Tensor
    num_classes: int
    held_out: "Source | None"

    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def sample_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def batch(self, index: Tensor, generator: torch.Generator | None) -> Batch: ...
    def to_unit(self, x: Tensor) -> Tensor: ...
    def to(self, device: str) -> "Source": ...


@dataclass
class Tensors:
    """Samples held in memory: images as uint8 (n, C, H, W), or floats (n, ...); normalised per channel, then augmented.

    `low` and `high` bound the values of float inputs, for `to_unit`; uint8 images are divided by 255 first. With a `vocabulary` x
    are tokens below it, (n, T) int64, and stay what they are.
    """

    x: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    augment: Augment | None = None
    held_out: Source | None = None
    low: float = 0.0
    high: float = 1.0
    vocabulary: int = 0

    def __post_init__(self) -> None:
        check_labels(self.labels, self.num_classes)
        if len(self.x) != len(self.labels):
            raise BadInput(f"{len(self.x)} inputs and {len(self.labels)} labels; there must be one label per input")
        shape = (1, -1, *(1 for _ in self.x.shape[2:]))
        self._mean = torch.tensor(self.mean, device=self.x.device).view(shape)
        self._std = torch.tensor(self.std, device=self.x.device).view(shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @property
    def sample_bytes(self) -> int:
        return self.x[0].numel() * self.x.element_size()

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.mean, self.std

    def __len__(self) -> int:
        return len(self.x)

    @self_contained
    def batch(self, index: Tensor, generator: torch.Generator | None) -> Batch:
        index = index.to(self.x.device)
        x = self.x[index]
        if self.vocabulary:
            return Batch(x, self.labels[index], ids=index)
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        x = (x - self._mean) / self._std
        if self.augment is not None and generator is not None:
            x = self.augment(x, generator)  # after normalisation, so that the padding is the mean
        return Batch(x, self.labels[index], ids=index)

    def to_unit(self, x: Tensor) -> Tensor:
        if self.vocabulary:
            raise BadInput("tokens lie in no range that could be rebuilt; set reconstruction = none")
        return ((x * self._std + self._mean - self.low) / (self.high - self.low)).clamp(0, 1)

    def to(self, device: str) -> "Tensors":
        held_out = self.held_out.to(device) if self.held_out else None
        fields = self.num_classes, self.mean, self.std, self.augment, held_out, self.low, self.high, self.vocabulary
        return Tensors(self.x.to(device), self.labels.to(device), *fields)

    def take(self, which: slice, held_out: Source | None) -> "Tensors":
        """Return some of the samples, evaluated on `held_out`; what is evaluated on nothing is itself not augmented."""
        augment = self.augment if held_out is not None else None
        fields = self.num_classes, self.mean, self.std, augment, held_out, self.low, self.high, self.vocabulary
        return Tensors(self.x[which], self.labels[which], *fields)


class MapStyle:
    """Any map-style data set whose items are (x, y); its own transforms are its augmentation.

    Floating inputs of any width become float32; integers (tokens) stay what they are. Raises BadInput if it has no length or
    is empty, if an item is no pair, if targets do not stack to a tensor, or if a label is out of range.
    """

    def __init__(self, dataset: Any, num_classes: int, held_out: Source | None = None, device: str = "cpu") -> None:
        self.dataset, self.num_classes, self.held_out, self.device = dataset, num_classes, held_out, device
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise BadInput(f"{type(dataset).__name__} is no map-style data set; it must have __len__ and __getitem__")
        if not len(dataset):
            raise BadInput("the data set has no samples; give one with at least one")
        self.labels = _targets(dataset)
        check_labels(self.labels, num_classes)
        x = dataset[0][0]
        try:
            first = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"inputs are {type(x).__name__}, not tensors; add a transform such as ToTensor") from error
        self.input_shape = tuple(first.shape)
        self.sample_bytes = first.nbytes

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> Batch:
        x, y = default_collate([self.dataset[int(i)] for i in index])
        x = x.to(self.device, torch.float32 if x.is_floating_point() else x.dtype)
        return Batch(x, y.to(self.device), ids=index)

    def to_unit(self, x: Tensor) -> Tensor:
        """Squash to [0, 1]: the range of a stranger's inputs is not known."""
        return torch.sigmoid(x)

    def to(self, device: str) -> "MapStyle":
        moved = copy.copy(self)  # the labels are known: the data set is not read again
        moved.held_out = self.held_out.to(device) if self.held_out else None
        moved.device = device
        return moved


def _targets(dataset: Any) -> Tensor:
    """Return all targets of a map-style data set, each of whose items is checked to be a pair."""
    targets = []
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            what = f"{len(item)} values" if isinstance(item, tuple | list) else type(item).__name__
            raise BadInput(f"item {i} of the data set gives {what}; its items must be pairs (x, y)")
        targets.append(item[1])
    try:
        labels = default_collate(targets)
    except (TypeError, RuntimeError) as error:
        labels = error
    if not isinstance(labels, Tensor):
        raise BadInput(f"targets such as {targets[0]!r:.40} do not stack to one tensor; give numbers or tensors of one shape")
    return labels


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise BadInput naming the first class label outside 0..num_classes-1; targets that are no integers are left alone."""
    if labels.dtype == torch.bool:
        raise BadInput("labels are true or false, and classes have numbers; give y.long()")
    if labels.is_floating_point() or labels.dim() != 1:
        return
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise BadInput(
            f"label {int(labels[at])} of sample {at} is out of range: {num_classes} classes are 0..{num_classes - 1}"
        )


@dataclass
class Data:
    """A data set with its two splits; `release` says which copy of it this is, `metadata` the meaning of its numbers.

    Raises BadInput unless class names, if given, name every class.
    """

    name: str
    train: Source
    test: Source
    num_classes: int
    release: str = ""
    metadata: Metadata = UNKNOWN

    def __post_init__(self) -> None:
        names = self.metadata.class_names
        if names is not None and len(names) != self.num_classes:
            raise BadInput(f"{len(names)} class names for {self.num_classes} classes; give one name for each class")

    def to(self, device: str) -> "Data":
        train = self.train.to(device)
        return Data(self.name, train, train.held_out or self.test.to(device), self.num_classes, self.release, self.metadata)


def from_datasets(train: Any, test: Any, num_classes: int, name: str = "own", metadata: Metadata = UNKNOWN) -> Data:
    """Return two map-style data sets of pairs (x, y) as Data; raises BadInput on items and labels that do not fit.

    Class names that `metadata` lacks come from the data sets' attributes `class_to_idx` or `classes`, as in torchvision.
    """
    held_out = MapStyle(test, num_classes)
    metadata = with_class_names(metadata, train, test, num_classes)
    return Data(name, MapStyle(train, num_classes, held_out), held_out, num_classes, "own", metadata)
