"""What an adversary has: pairs of inputs and activations of its own, and the activations, without the inputs, of others."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import codecs
from ..cut import Smashed
from ..errors import BadInput
from ..predict import Owner, load_into
from ..recipes.recipe import Recipe
from ..run import parts_of
from ..streams import stream

MOST_BYTES = 1 << 32  # of all activations, which are kept


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
    """The attacker's own samples, of the same kind, and those that it attacks; no sample is in both."""

    own: Half
    theirs: Half


def seen_of(owner: Owner, recipe: Recipe, top: Path, effort: Effort) -> Seen:
    """Return what the trained bottom sends of two halves of the test set, after the codec as it is in training; in eval mode.

    Raises BadInput where rows are no samples (graphs, batch_merge), and for effort that is none.
    """
    if owner.task.ragged or codecs.reducer(recipe.codec) is not None:
        raise BadInput(
            "rows that cross are nodes, or means of samples, here; audits are of cuts that each sample crosses alone"
        )
    for name, value in (("samples", effort.samples), ("epochs", effort.epochs)):
        if value < 1:
            raise BadInput(f"{name} = {value}: at least 1")
    n = min(effort.samples, len(owner.data.test) // 2)
    if not n:
        raise BadInput("a test set of one sample has no halves; raise num_test")
    most = MOST_BYTES // (8 * math.prod(owner.task.cut_shape))
    if n > most:
        raise BadInput(f"samples = {effort.samples}: activations of twice {n} are more than 4 GiB; give at most {most}")
    chosen = torch.randperm(len(owner.data.test), generator=stream(effort.seed, "audit halves"))[: 2 * n]
    sees = _Reading(owner, recipe, top)
    return Seen(*(sees.half(index) for index in chosen.split(n)))


class _Reading:
    """Reads what crosses of some test samples."""

    def __init__(self, owner: Owner, recipe: Recipe, top: Path) -> None:
        self.owner, self.source, self.batch_size = owner, owner.data.test, recipe.batch_size
        self.codecs = codecs.build(recipe.codec, recipe.seed, end="audit")
        self.top = None
        if "tail" in owner.modules:
            self.top = load_into(parts_of(recipe, owner.data).top, top).to(recipe.device)

    def half(self, index: Tensor) -> Half:
        batches = [self._batch(each) for each in index.split(self.batch_size)]
        x, z, y, features = (None if column[0] is None else torch.cat(column) for column in zip(*batches, strict=True))
        assert z is not None
        assert y is not None
        return Half(x, z, y, features)

    @torch.no_grad()
    def _batch(self, index: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        batch = self.source.batch(index, None)
        x = self.source.to_unit(batch.x) if batch.x.is_floating_point() else None
        with self.owner.autocast():
            sent = Smashed.through(self.owner.modules["bottom"], batch._replace(x=self.owner.place(batch.x)))
            z = self._coded("smashed", sent.main)
            features = None if self.top is None else self._coded("features", self.top(z, **sent.others)).float()
        return x, z.float(), batch.y, features

    def _coded(self, role: str, tensor: Tensor) -> Tensor:
        codec = self.codecs.get(role)
        return tensor if codec is None else codec.decode(codec.encode(tensor))
