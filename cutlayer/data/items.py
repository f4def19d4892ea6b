"""Reading batches of any data set reproducibly."""

import warnings
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from ..errors import Advice
from ..streams import seeded_globals, stream
from ..task import Batch
from .sources import MapStyle, Source

NUM_CHECKED = 8  # samples that are read twice: a random flip leaves every second one as it is


def read_batch(
    source: Source, index: Tensor, generator: torch.Generator | None, seed: int, purpose: str, client: int = 0, round: int = 0,
    step: int = 0,
) -> Batch:  # fmt: skip
    """Return the samples at `index` (B,) of a source; items that draw from a global generator draw from a stream.

    The stream depends on `seed` and the four arguments after it. The global generators are left as they were.
    """
    draws = seeded_globals(seed, purpose, client, round, step) if may_draw(source) else nullcontext()
    with draws:
        return source.batch(index, generator)


def may_draw(source: Source) -> bool:
    """Return whether reading samples may draw from a global generator: code of the user's own may, that of this package does not."""
    if type(source) is MapStyle:
        dataset = source.dataset
        while type(dataset) is Subset:
            dataset = dataset.dataset
        return type(dataset) is not TensorDataset
    used = (source.batch, getattr(source, "augment", None))
    return not all(getattr(each, "self_contained", False) for each in used if callable(each))


def check_reproducible(source: Source, seed: int) -> bool:
    """Return whether samples of a source and of its evaluation set are the same when they are read twice under one seed; advise if not."""
    found = True
    for what, each in (("training", source), ("evaluation", source.held_out)):
        if each is None or not may_draw(each):
            continue
        for i in range(min(NUM_CHECKED, len(each))):
            if not _same(*(_read_again(each, i, seed, augmented=each is source) for _ in range(2))):
                warnings.warn(
                    f"sample {i} of the {what} set differs when it is read twice under one seed: its data set has a random generator "
                    f"of its own, so another run gives other results; draw from the global generator of torch, numpy or Python",
                    Advice,
                    stacklevel=2,
                )
                found = False
                break
    return found


def _read_again(source: Source, i: int, seed: int, augmented: bool) -> Batch:
    generator = stream(seed, "check augment") if augmented else None
    return read_batch(source, torch.tensor([i]), generator, seed, "check items")


def _same(a: Batch, b: Batch) -> bool:
    pairs = [(a.x, b.x), (a.y, b.y), *((a.inputs[name], b.inputs.get(name)) for name in a.inputs)]
    return all(
        other is not None and one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in pairs
    )
