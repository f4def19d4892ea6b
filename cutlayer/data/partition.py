"""Shares of data: temporary."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..streams import stream


@dataclass(frozen=True)
class Partition:
    source: Any
    shares: tuple[Tensor, ...]
    name: str
    counts: Tensor
    tries: int = 1

    def __len__(self) -> int:
        return len(self.shares)


class Entry(NamedTuple):
    fn: Any
    line: str


def _make(source, shares, name):
    counts = torch.stack([torch.bincount(source.labels[s], minlength=source.num_classes) for s in shares])
    return Partition(source, tuple(shares), name, counts)


def iid(source, num_clients, seed=0):
    return _make(source, torch.randperm(len(source), generator=stream(seed, "partition")).tensor_split(num_clients), "iid")


def contiguous(source, num_clients, seed=0):
    return _make(source, torch.arange(len(source)).tensor_split(num_clients), "contiguous")


PARTITIONS = {"iid": Entry(iid, "iid"), "contiguous": Entry(contiguous, "contiguous")}


def split(name, source, num_clients, seed, alpha, classes_per_client):
    return PARTITIONS[name].fn(source, num_clients, seed)


def save(partition, path: Path) -> None:
    path.write_text(json.dumps({"shares": [s.tolist() for s in partition.shares]}))
