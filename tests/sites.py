"""Data sets of several sites, as `--data sites:NAME` reads them: the same task, with one property changed."""

import functools
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.data.metadata import UNKNOWN
from cutlayer.data.sources import Data, Tensors
from cutlayer.streams import stream
from cutlayer.task import Batch


class Named(TensorDataset):
    """A map-style data set with torchvision's attribute `classes`."""

    def __init__(self, x, y, classes):
        super().__init__(x, y)
        self.classes = classes


class Minimal:
    """A source with what the protocol asks for, and nothing else."""

    def __init__(self, labels, num_classes=2):
        self.labels, self.num_classes, self.held_out = labels, num_classes, None
        self.x = torch.rand(len(labels), 3, 6, 6, generator=stream(0, "sites"))
        self.input_shape, self.sample_bytes = (3, 6, 6), 432

    def __len__(self):
        return len(self.labels)

    def batch(self, index, generator):
        return Batch(self.x[index], self.labels[index], ids=index)

    def to_unit(self, x):
        return x

    def to(self, device):
        return self


def net(num_classes, input_shape):
    """A network that takes images of any size and channel count, so that only the comparison can refuse them."""
    first = nn.Sequential(nn.Conv2d(input_shape[0], 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(first, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def words(num_classes, input_shape, vocabulary=0):
    return nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(20, num_classes))


def images(classes=("cat", "dog"), shape=(3, 6, 6), scale=1.0, target=torch.long, shift=0.0):
    """Images with values from 0 to `scale`, whose labels are 0, 1, ..."""
    num_classes = len(classes or ("cat", "dog"))
    y = (torch.arange(16) % num_classes).to(target)
    x = (torch.rand(16, *shape, generator=stream(0, "sites")) + shift) * scale
    rows = Named(x, y, list(classes)) if classes else TensorDataset(x, y)
    return cl.data.from_datasets(rows, rows, num_classes)


def minimal(labels):
    source = Minimal(labels)
    return Data("minimal", source, source, source.num_classes)


def tensors(x, metadata=UNKNOWN, **fields):
    source = Tensors(x, torch.arange(len(x)) % 2, 2, **fields)
    return Data("tensors", source, replace(source), 2, metadata=metadata)


def text(vocabulary="abcd", tokenizer="letters, version 1"):
    x = torch.randint(20, (16, 5), generator=stream(0, "sites"))
    return tensors(x, cl.data.Metadata(["good", "bad"], vocabulary=list(vocabulary), tokenizer=tokenizer), vocabulary=20)


def table(columns=("age", "weight"), **statistics):
    x = torch.randn(16, 2, generator=stream(0, "sites"))
    return tensors(x, cl.data.Metadata(["ill", "well"], columns, statistics=statistics or None))


def constants(mean, std):
    return tensors(
        torch.rand(16, 3, 6, 6, generator=stream(0, "sites")), cl.data.Metadata(["cat", "dog"]), mean=(mean,), std=(std,)
    )


cat_dog = images
dog_cat = functools.partial(images, ("dog", "cat"))
dog_fox = functools.partial(images, ("dog", "fox"))
misspelt = functools.partial(images, ("Dog", "cat"))
cat_only = functools.partial(images, ("cat",))
cat_dog_fox = functools.partial(images, ("cat", "dog", "fox"))
unnamed = functools.partial(images, None)
larger = functools.partial(images, shape=(3, 8, 8))
grey = functools.partial(images, shape=(1, 6, 6))
bytes_as_floats = functools.partial(images, scale=255.0)
darker = functools.partial(images, scale=0.5)
centred = functools.partial(images, shift=-0.5, scale=2.0)
regression = functools.partial(images, target=torch.float64)
without_extras = functools.partial(minimal, torch.arange(16) % 2)
label_2 = functools.partial(minimal, torch.arange(16) % 3)
label_negative = functools.partial(minimal, torch.arange(16) % 2 - 1)
