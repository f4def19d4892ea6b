"""What an adversary has: pairs of inputs and activations of its own, and the activations, without the inputs, of others."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import codecs
from ..cut import Smashed
from ..data.items import read_batch
from ..data.sources import MapStyle, Source
from ..errors import BadInput
from ..predict import Owner, load_into
from ..recipes.recipe import Recipe
from ..streams import stream

MOST_BYTES = 1 << 32  # of all inputs and activations, which are kept


class Closed(BadInput):
    """This run leaves no way for an attack."""


class Effort(NamedTuple):
    """How many samples an attacker has and attacks, for how many epochs it learns, and its own seed."""

    samples: int = 5000
    epochs: int = 20
    seed: int = 0


Tick = Callable[[int, int], None]  # is told how much of how much is done


class Half(NamedTuple):
    """Samples: inputs `x` (n, ...) in [0, 1], or None of tokens; `z` (n, *cut) as it arrives; targets `y` (n, ...).

    `features` (n, ...) are what goes down to the tail, where there is one.
    """

    x: Tensor | None
    z: Tensor
    y: Tensor
    features: Tensor | None


class Seen(NamedTuple):
    """The attacker's own samples, of the same kind, and those that it attacks; no sample is in both.

    `coded` is what becomes of a tensor of a role on its way, and `batch_size` how many samples cross together.
    """

    own: Half
    theirs: Half
    coded: Callable[[str, Tensor], Tensor] = lambda role, tensor: tensor
    batch_size: int = 500


def seen_of(owner: Owner, recipe: Recipe, top: Path, effort: Effort) -> Seen:
    """Return what the trained bottom sends of two halves of the test set, after the codec as it is in training; in eval mode.

    Raises BadInput where rows are no samples (graphs, batch_merge), where more than one tensor of floats crosses, where activations are
    not finite, and for effort that is none.
    """
    if owner.task.ragged or codecs.reducer(recipe.codec) is not None:
        raise BadInput(
            "rows that cross are nodes, or means of samples, here; audits are of cuts that each sample crosses alone"
        )
    crossing = ("x", "smashed", "features") if "tail" in owner.modules else ("x", "smashed")
    for name, layout in owner.task.layouts.items():
        if name in crossing and (fault := layout.fault) is not None:
            raise BadInput(f"audits join rows of batches, and for {name!r} {fault}; cut elsewhere")
    for name, value in (("samples", effort.samples), ("epochs", effort.epochs)):
        if value < 1:
            raise BadInput(f"{name} = {value}: at least 1")
    n = min(effort.samples, len(owner.data.test) // 2)
    if not n:
        raise BadInput("a test set of one sample has no halves; raise num_test")
    most = MOST_BYTES // (8 * (math.prod(owner.task.cut_shape) + math.prod(owner.task.input_shape)))
    if n > most:
        raise BadInput(
            f"samples = {effort.samples}: inputs and activations of twice {n} are more than 4 GiB; give at most {most}"
        )
    chosen = torch.randperm(len(owner.data.test), generator=stream(effort.seed, "audit halves"))[: 2 * n]
    sees = _Reading(owner, recipe, top)
    own, theirs = (sees.half(index) for index in chosen.split(n))
    if own.x is not None and theirs.x is not None:
        to_unit = _to_unit(owner.data.test, own.x)
        own, theirs = own._replace(x=to_unit(own.x)), theirs._replace(x=to_unit(theirs.x))
    return Seen(own, theirs, sees.coded, recipe.batch_size)


def _to_unit(source: Source, own: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what maps inputs to [0, 1]; of a data set whose range nobody has told it is that of the attacker's own."""
    if not isinstance(source, MapStyle):
        return source.to_unit
    low, high = own.min(), own.max()
    return lambda x: ((x - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


class _Reading:
    """Reads what crosses of some test samples."""

    def __init__(self, owner: Owner, recipe: Recipe, top: Path) -> None:
        self.owner, self.source, self.batch_size, self.seed = owner, owner.data.test, recipe.batch_size, recipe.seed
        self.codecs = codecs.build(recipe.codec, recipe.seed, end="audit")
        self.top = None
        if "tail" in owner.modules:
            self.top = load_into(owner.parts.top, top).to(recipe.device)

    def half(self, index: Tensor) -> Half:
        batches = [self._batch(each) for each in index.split(self.batch_size)]
        x, z, y, features = (None if column[0] is None else torch.cat(column) for column in zip(*batches, strict=True))
        assert z is not None
        assert y is not None
        if not z.isfinite().all():
            raise BadInput("activations hold NaN or infinity: this run diverged; audit another")
        return Half(x, z, y, features)

    @torch.no_grad()
    def _batch(self, index: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        batch = read_batch(self.source, index, None, self.seed, "audit items", step=int(index[0]))
        x = batch.x if batch.x.is_floating_point() else None
        with self.owner.autocast():
            sent = Smashed.through(self.owner.modules["bottom"], batch._replace(x=self.owner.place(batch.x)))
            if floats := [name for name, other in sent.others.items() if other.is_floating_point()]:
                raise BadInput(f"{', '.join(floats)} crosses too, and attacks are of one tensor; cut where one crosses")
            z = self.coded("smashed", sent.main)
            features = None if self.top is None else self.coded("features", self.top(z, **sent.others)).float()
        return x, z.float(), batch.y, features

    def coded(self, role: str, tensor: Tensor) -> Tensor:
        """Return a tensor of a role as it arrives."""
        codec = self.codecs.get(role)
        return tensor if codec is None else codec.decode(codec.encode(tensor))
