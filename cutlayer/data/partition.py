"""How the training data lie with the clients: pure, seeded functions, disjoint and complete."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import BadInput
from ..named import find, made
from ..private import write
from ..streams import stream
from .sources import Source

MAX_TRIES = 1000
PARTITION_VERSION = (
    2  # version 1 rounds every client of a Dirichlet partition down and gives the last one the rest of each class
)


@dataclass(frozen=True)
class Partition:
    """Shares of a source: one index tensor (n_k,) per client; `counts` (N, C) are the classes each client holds.

    `tries`: how often a random partition was drawn until every share was large enough; `fields`: what it was made with, by
    the names of recipe fields.
    """

    source: Source | None
    shares: tuple[Tensor, ...]
    name: str
    counts: Tensor
    tries: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shares)

    def __getitem__(self, client: int) -> Tensor:
        return self.shares[client]


def _labels(source: Source | Tensor) -> Tensor:
    return (source if isinstance(source, Tensor) else source.labels).cpu()


def _class_labels(source: Source | Tensor, name: str) -> Tensor:
    labels = _labels(source)
    if labels.dim() != 1 or labels.is_floating_point():
        raise BadInput(
            f"partition {name} needs one class per sample, not targets {tuple(labels.shape)} {labels.dtype}; use iid or contiguous"
        )
    return labels


def _generator(seed: int, attempt: int = 0) -> torch.Generator:
    return stream(seed, "partition", step=attempt)


def _make(source: Source | Tensor, shares: Iterable[Tensor], name: str, tries: int = 1, **fields: Any) -> Partition:
    shares, labels = tuple(shares), _labels(source)
    empty = [k for k, share in enumerate(shares) if not len(share)]
    if empty:
        raise BadInput(
            f"client {empty[0]} of {len(shares)} would have no samples ({len(labels)} in all, partition {name}); use fewer clients"
        )
    if labels.dim() == 1 and not labels.is_floating_point():
        num_classes = int(labels.max()) + 1 if isinstance(source, Tensor) else source.num_classes
        counts = torch.stack([torch.bincount(labels[share], minlength=num_classes) for share in shares])
    else:
        counts = torch.tensor([[len(share)] for share in shares])
    return Partition(None if isinstance(source, Tensor) else source, shares, name, counts, tries, fields)


def iid(source: Source | Tensor, num_clients: int, seed: int = 0) -> Partition:
    """Deal one random permutation; sizes differ by at most one."""
    _enough(_labels(source), num_clients)
    order = torch.randperm(len(_labels(source)), generator=_generator(seed))
    return _make(source, order.tensor_split(num_clients), "iid", seed=seed)


def contiguous(source: Source | Tensor, num_clients: int, seed: int = 0) -> Partition:
    """Deal ranges of indices in order, as the code of arXiv 2601.19261 does, but without dropping the remainder."""
    _enough(_labels(source), num_clients)
    return _make(source, torch.arange(len(_labels(source))).tensor_split(num_clients), "contiguous")


def dirichlet(
    source: Source | Tensor, num_clients: int, alpha: float = 0.5, seed: int = 0, min_size: int = 10,
    version: int = PARTITION_VERSION,
) -> Partition:  # fmt: skip
    """Split each class by proportions drawn from Dir(alpha); redrawn from scratch until every client has `min_size` samples.

    Version 2 rounds the cumulative proportions, so all clients have the same distribution. Version 1 repeats earlier results.
    Raises BadInput after 1000 tries, at once if there are too few samples for any draw, and for an unknown version.
    """
    if version not in (1, PARTITION_VERSION):
        raise BadInput(f"version = {version!r}: no such version of the partitions; give 1 or {PARTITION_VERSION}")
    labels = _class_labels(source, "dirichlet")
    _enough(labels, num_clients)
    _positive(alpha)
    if num_clients * min_size > len(labels):
        raise BadInput(
            f"{len(labels)} samples cannot give each of {num_clients} clients {min_size}; use fewer clients or more samples"
        )
    for attempt in range(MAX_TRIES):
        generator = _generator(seed, attempt)
        shares: list[list[Tensor]] = [[] for _ in range(num_clients)]
        for c in labels.unique().tolist():
            of_class = (labels == c).nonzero().flatten()
            of_class = of_class[torch.randperm(len(of_class), generator=generator)]
            proportions = _dirichlet(alpha, num_clients, generator)
            ends = proportions.cumsum(0)[:-1] * len(of_class)
            ends = (ends.floor() if version == 1 else ends.round()).long()
            for share, piece in zip(shares, of_class.tensor_split(ends), strict=True):
                share.append(piece)
        joined = [torch.cat(share) for share in shares]
        if min(len(share) for share in joined) >= min_size:
            return _make(source, joined, "dirichlet", attempt + 1, alpha=alpha, seed=seed, partition_version=version)
    raise BadInput(
        f"no Dirichlet({alpha}) partition of {len(labels)} samples gives each of {num_clients} clients {min_size} in "
        f"{MAX_TRIES} tries; raise alpha, use fewer clients or more samples"
    )


def _dirichlet(alpha: float, size: int, generator: torch.Generator) -> Tensor:
    concentration = torch.full((size,), alpha, dtype=torch.float64)
    gammas = torch._standard_gamma(concentration, generator=generator)
    # for a tiny alpha all draws may underflow to zero: then one client has it all
    if float(gammas.sum()) == 0:
        gammas[torch.randint(size, (1,), generator=generator)] = 1
    return gammas / gammas.sum()


def dirichlet_equal(source: Source | Tensor, num_clients: int, alpha: float = 0.5, seed: int = 0) -> Partition:
    """Give every client as many samples, its classes drawn from its own Dir(alpha) until they run out (as FSL-SAGE's code does).

    The last clients get the classes that remain, so their shares deviate most from Dir(alpha).
    """
    labels = _class_labels(source, "dirichlet_equal")
    _enough(labels, num_clients)
    _positive(alpha)
    generator = _generator(seed)
    pools = []
    for c in labels.unique().tolist():
        of_class = (labels == c).nonzero().flatten()
        pools.append(of_class[torch.randperm(len(of_class), generator=generator)].tolist())
    shares = []
    for size in [len(part) for part in torch.arange(len(labels)).tensor_split(num_clients)]:
        wish = _dirichlet(alpha, len(pools), generator).clamp_min(1e-9)
        share: list[int] = []
        while len(share) < size:
            left = torch.tensor([float(bool(pool)) for pool in pools], dtype=torch.float64) * wish
            share.append(pools[int(torch.multinomial(left, 1, generator=generator))].pop())
        shares.append(torch.tensor(share))
    return _make(source, shares, "dirichlet_equal", alpha=alpha, seed=seed)


def classes(
    source: Source | Tensor, num_clients: int | None = None, seed: int = 0, groups: Sequence[Sequence[int]] | None = None
) -> Partition:
    """Give each client classes of its own: `groups`, or equal runs of classes (10 classes and 3 clients: 4, 3, 3).

    Raises BadInput if the groups are not disjoint and complete, or are not as many as `num_clients`.
    """
    labels = _class_labels(source, "classes")
    present = labels.unique()
    if groups is None:
        if num_clients is None or not 1 <= num_clients <= len(present):
            raise BadInput(
                f"{num_clients} clients and {len(present)} classes: with disjoint classes each client needs one of its own"
            )
        groups = [part.tolist() for part in present.tensor_split(num_clients)]
    if num_clients not in (None, len(groups)):
        raise BadInput(f"{num_clients} clients and {len(groups)} groups of classes; give one group per client")
    named = [c for group in groups for c in group]
    if len(set(named)) != len(named) or set(named) != set(present.tolist()):
        raise BadInput(f"groups = {groups!r} must name each of the classes {present.tolist()} once")
    return _make(source, [torch.isin(labels, torch.tensor(list(group))).nonzero().flatten() for group in groups], "classes")


def classes_equal(source: Source | Tensor, num_clients: int, seed: int = 0) -> Partition:
    """Give each client classes of its own, and as many samples as the one with the fewest has; what is over is left out.

    So that all clients are there at every average: the last averages of a round in which one of them has more batches would be its own.
    """
    whole = classes(source, num_clients, seed)
    size = min(len(share) for share in whole.shares)
    return _make(source, [share[:size] for share in whole.shares], "classes_equal")


def pathological(source: Source | Tensor, num_clients: int, classes_per_client: int = 2, seed: int = 0) -> Partition:
    """Deal shards of the data sorted by class, `classes_per_client` to each client (McMahan et al. 2017); nothing is left over."""
    labels = _class_labels(source, "pathological")
    num_shards = num_clients * classes_per_client
    _enough(labels, num_shards)
    shards = labels.argsort(stable=True).tensor_split(num_shards)
    dealt = torch.randperm(num_shards, generator=_generator(seed)).view(num_clients, classes_per_client)
    return _make(
        source,
        [torch.cat([shards[int(i)] for i in row]) for row in dealt],
        "pathological",
        classes_per_client=classes_per_client,
        seed=seed,
    )


def by_column(source: Source | Tensor, column: Tensor) -> Partition:
    """Give each distinct value of a column (n,) a client of its own, as data arise in practice (a hospital, a writer)."""
    if column.dim() != 1:
        raise BadInput(f"the column has shape {tuple(column.shape)}; give one value per sample, shape (n,)")
    column = column.cpu()
    if len(column) != len(_labels(source)):
        raise BadInput(f"the column has {len(column)} values and the data {len(_labels(source))} samples; they must be equal")
    return _make(source, [(column == value).nonzero().flatten() for value in column.unique()], "by_column")


def _positive(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise BadInput(f"alpha = {alpha} is no concentration; give a finite number above 0")


def _enough(labels: Tensor, num_parts: int) -> None:
    if not isinstance(num_parts, int) or num_parts < 1:
        raise BadInput(f"the data cannot be dealt to {num_parts} shares; use at least one client (and one class for each)")
    if num_parts > len(labels):
        raise BadInput(f"{len(labels)} samples cannot be dealt to {num_parts} shares; use fewer clients or more samples")


class Entry(NamedTuple):
    """A row of the table: what makes shares of (source, recipe), and one line about it."""

    make: Callable[[Source, Any], Partition]
    line: str


PARTITIONS: dict[str, Entry] = {
    "iid": Entry(lambda s, r: iid(s, r.num_clients, r.seed), "one random permutation, dealt equally"),
    "contiguous": Entry(lambda s, r: contiguous(s, r.num_clients), "ranges of indices in order"),
    "dirichlet": Entry(
        lambda s, r: dirichlet(s, r.num_clients, r.alpha, r.seed, version=r.partition_version), "each class split by Dir(alpha)"
    ),
    "dirichlet_equal": Entry(
        lambda s, r: dirichlet_equal(s, r.num_clients, r.alpha, r.seed),
        "equal sizes, each client's classes from its own Dir(alpha)",
    ),
    "classes": Entry(
        lambda s, r: classes(s, r.num_clients, r.seed), "disjoint runs of classes: 3 clients hold 4, 3 and 3 of 10"
    ),
    "classes_equal": Entry(
        lambda s, r: classes_equal(s, r.num_clients, r.seed),
        "the same, and all shares as small as the smallest: some samples are left out",
    ),
    "pathological": Entry(
        lambda s, r: pathological(s, r.num_clients, r.classes_per_client, r.seed),
        "shards of sorted labels, classes_per_client each",
    ),
}


def split(source: Source, recipe: Any) -> Partition:
    """Return the shares that a recipe names; raises BadInput on an unknown name or shares that cannot be had."""
    row = find("partition", recipe.partition, PARTITIONS)
    return (
        row.make(source, recipe)
        if isinstance(row, Entry)
        else made("partition", recipe.partition, row, Partition, source, recipe)
    )


def save(partition: Partition, path: Path, release: str = "") -> None:
    """Write the shares, their class counts, the partition version and the release of the data, as JSON."""
    shares, counts = [share.tolist() for share in partition.shares], partition.counts.tolist()
    version = partition.fields.get("partition_version", PARTITION_VERSION)
    told = {
        "name": partition.name, "version": version, "tries": partition.tries, "release": release, "counts": counts,
        "shares": shares,
    }  # fmt: skip
    write(path, json.dumps(told))
