"""Graph classification: the TUDataset collection (Morris et al. 2020), read from its zip files."""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInput
from ..streams import self_contained
from ..task import Batch
from .archives import read_member
from .files import needed, reading, release_of
from .metadata import Metadata
from .sources import Data, Source, check_labels

SPLIT_SEED = 0
MOST_BYTES = 32_000_000  # of an inflated member; the largest has 4.6 million
MOST_FEATURE_BYTES = 1 << 30
COLLECTION = {
    "mutag": "MUTAG",
    "proteins": "PROTEINS",
    "nci1": "NCI1",
    "enzymes": "ENZYMES",
    "imdb_binary": "IMDB-BINARY",
}


@dataclass
class Graphs:
    """Graphs of any size: node features (nodes, d), edges (E, 2) by the node's number within its graph, one label each.

    A batch of B graphs has x (all nodes, d), and beside it nodes (B,), edges (all edges, 2) and edge_counts (B,): counts and
    numbers within a graph, so that batches of several clients can be put one behind the other.
    """

    x: Sequence[Tensor]
    edges: Sequence[Tensor]
    labels: Tensor
    num_classes: int
    held_out: Source | None = None
    ragged: bool = True

    def __post_init__(self) -> None:
        check_labels(self.labels, self.num_classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x[0].shape[1:])

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return (0.0,), (1.0,)  # features are one-hot

    @property
    def sample_bytes(self) -> int:
        """Mean bytes of a graph."""
        return sum(x.nbytes + e.nbytes for x, e in zip(self.x, self.edges, strict=True)) // len(self)

    def __len__(self) -> int:
        return len(self.x)

    @self_contained
    def batch(self, index: Tensor, generator: torch.Generator | None) -> Batch:
        chosen = index.tolist()
        x, edges = [self.x[i] for i in chosen], [self.edges[i] for i in chosen]
        device = self.labels.device
        inputs = {
            "nodes": torch.tensor([len(each) for each in x], device=device),
            "edges": torch.cat(edges),
            "edge_counts": torch.tensor([len(each) for each in edges], device=device),
        }
        return Batch(torch.cat(x), self.labels[index.to(device)], inputs, index)

    def to_unit(self, x: Tensor) -> Tensor:
        raise BadInput("graphs differ in size, so no decoder rebuilds them; set reconstruction = none")

    def to(self, device: str) -> "Graphs":
        held_out = self.held_out.to(device) if self.held_out else None
        x, edges = ([tensor.to(device) for tensor in tensors] for tensors in (self.x, self.edges))
        return Graphs(x, edges, self.labels.to(device), self.num_classes, held_out)

    def take(self, which: slice, held_out: Source | None) -> "Graphs":
        """Return some of the graphs, evaluated on `held_out`."""
        return Graphs(self.x[which], self.edges[which], self.labels[which], self.num_classes, held_out)


def tudataset(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return a set of the collection, 90 % of each class for training; node labels one-hot, or degrees where there are none.

    The vocabulary of node labels is that of the whole set. Raises BadInput if its zip file is missing or damaged.
    """
    from sklearn.model_selection import train_test_split  # importing it takes nearly as long as torch

    file = f"{COLLECTION[name]}.zip"
    remedy = "get it from https://chrsmrrs.github.io/datasets and name the folder with --data-dir or CUTLAYER_DATA"
    path = needed(data_dir, f"tudataset/{file}", file, remedy=remedy)
    with reading(path):
        x, edges, labels, metadata = read(path, COLLECTION[name])
        where = np.arange(len(labels))
        train, test = train_test_split(where, test_size=0.1, random_state=SPLIT_SEED, stratify=labels)
    num_classes = int(labels.max()) + 1
    splits = [([x[i] for i in part], [edges[i] for i in part], torch.from_numpy(labels[part])) for part in (train, test)]
    held_out = Graphs(*splits[1], num_classes)
    return Data(name, Graphs(*splits[0], num_classes, held_out), held_out, num_classes, release_of(path), metadata)


def _check_graphs(path: Path, name: str, pairs: np.ndarray, graph: np.ndarray, num_graphs: int) -> None:
    """Refuse the first line of which node or edge does not belong to one graph, in the order of the graphs (numbers are from 0)."""
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise BadInput(f"{path}: {name}_A.txt has lines that are no pairs of nodes; get the file again")

    def refuse(wrong: Any, file: str, why: str) -> None:
        if wrong.any():
            line = int(wrong.argmax()) + 1
            raise BadInput(f"{path}: {name}_{file}.txt, line {line}: {why}; get the file again, or correct the line")

    refuse((graph < 0) | (graph >= num_graphs), "graph_indicator", f"no such graph; they are 1 to {num_graphs}")
    refuse(np.diff(graph, prepend=0) < 0, "graph_indicator", "nodes must be in the order of their graphs")
    refuse(((pairs < 0) | (pairs >= len(graph))).any(1), "A", f"no such node; they are 1 to {len(graph)}")
    refuse(graph[pairs[:, 0]] != graph[pairs[:, 1]], "A", "the edge joins nodes of two graphs")


def read(path: Path, name: str) -> tuple[list[Tensor], list[Tensor], np.ndarray, Metadata]:
    """Return one-hot features (nodes, d) and edges (E, 2) of each graph, the classes (n,) from 0, and their names, of a zip file.

    Raises BadInput that names the line of a node or an edge that belongs to no graph or to two.
    """
    with zipfile.ZipFile(path) as archive:

        def part(what: str) -> np.ndarray:
            raw = read_member(archive, f"{name}/{name}_{what}.txt", MOST_BYTES)
            return np.loadtxt(io.BytesIO(raw), delimiter=",", dtype=np.int64, ndmin=2 if what == "A" else 1)

        pairs, graph, labels = part("A") - 1, part("graph_indicator") - 1, part("graph_labels")
        _check_graphs(path, name, pairs, graph, len(labels))
        pairs = np.unique(pairs, axis=0)  # IMDB-BINARY lists every pair twice
        labelled = f"{name}/{name}_node_labels.txt" in archive.namelist()
        tags = part("node_labels") if labelled else np.bincount(pairs[:, 0], minlength=len(graph))
    if len(tags) != len(graph):
        raise BadInput(f"{path}: {name}_node_labels.txt has {len(tags)} lines for {len(graph)} nodes; get the file again")
    kinds, tags = np.unique(tags, return_inverse=True)
    if 4 * len(kinds) * len(tags) > MOST_FEATURE_BYTES:
        raise BadInput(
            f"{path}: {len(tags)} nodes with {len(kinds)} different labels need more than {MOST_FEATURE_BYTES:,} bytes as one-hot "
            f"features; get the file again"
        )
    names, classes = np.unique(labels, return_inverse=True)
    what = "node label" if labelled else "degree"
    metadata = Metadata(class_names=[str(each) for each in names], column_names=[f"{what} {each}" for each in kinds])
    x = torch.nn.functional.one_hot(torch.from_numpy(tags)).float()
    sizes = np.bincount(graph, minlength=len(labels))
    first = np.concatenate([[0], sizes.cumsum()[:-1]])
    local = torch.from_numpy(pairs - first[graph[pairs[:, 0]]][:, None])
    num_edges = np.bincount(graph[pairs[:, 0]], minlength=len(labels))
    return list(x.split(sizes.tolist())), list(local.split(num_edges.tolist())), classes.astype(np.int64), metadata
