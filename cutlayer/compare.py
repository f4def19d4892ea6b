"""The product of everything: one run per cell, resumable between runs and inside them."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError

from .errors import BadInput, RunFailed
from .integrity import check_trained
from .recipes import FIELDS, Recipe, options_of, override, toml
from .recipes.recipe import OUTSIDE, make
from .recipes.schemes import BASELINES, SCHEMES
from .report import Run, read
from .run import Paused, Progress, run_recipe
from .run_folder import check_folder

Over = Mapping[str, Sequence[Any]]


def cells(
    fields: Mapping[str, Any], over: Over, seeds: Sequence[int], flags: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Recipe]:
    """Yield a recipe for every combination of the values in `over` and every seed, once each.

    `flags` hold in every cell, over what a swept scheme decides too.
    Options that belong to another method or schedule than the cell's are left out, so heads can be compared beside backprop.
    Raises BadInput as `recipes.make` does, and for an option that no cell has.
    """
    if "seed" in over:
        raise BadInput("seed: every cell is run with the same seeds; give them with --seeds 0,1,2")
    for field, what in OUTSIDE.items():
        if field in over:
            raise BadInput(f"{field}: {what} is not part of a recipe, so all cells would be one; compare in two folders")
    products = [
        {**flags, **dict(zip([*over, "seed"], values, strict=True))} for values in itertools.product(*over.values(), seeds)
    ]
    had = [options_of(fields, {k: v for k, v in changes.items() if k in FIELDS}) for changes in products]
    known = set(FIELDS).union(*had)
    seen = set()
    for changes, own in zip(products, had, strict=True):
        kept = {k: v for k, v in changes.items() if k in FIELDS or k in own or k not in known}
        recipe = override(fields, kept)
        if recipe.digest() not in seen:
            seen.add(recipe.digest())
            yield recipe


OF_A_CUT = ("scheme", "method", "schedule", "cut", "tail", "codec", "compress_eval", "overlap", "diagnose_every", "tap")
OF_CLIENTS = ("num_clients", "partition", "alpha", "partition_version", "classes_per_client")
OF_THE_CLOCK = ("uplink", "downlink", "latency", "speeds", "server_speed")


def baselines(recipes: Sequence[Recipe]) -> list[Recipe]:
    """Return what the cells of a comparison are to be seen beside, once each: the uncut network, centralised, local, FedAvg."""
    found: dict[str, Recipe] = {}
    known = {recipe.digest() for recipe in recipes}
    for recipe in recipes:
        kept = {name: value for name, value in recipe.flat().items() if name in FIELDS and name not in OF_A_CUT}
        for scheme in BASELINES if recipe.num_clients > 1 else BASELINES[:1]:
            central = "num_clients" in SCHEMES[scheme].fields
            # the one owner is none of these clients: where they differ in speed, nothing is known of its seconds
            without = (OF_CLIENTS + (OF_THE_CLOCK if len(recipe.speeds) > 1 else ())) if central else ()
            without += () if scheme == "fedavg" else ("fedprox",)  # who receives no weights is pulled to none
            made = make({**{name: value for name, value in kept.items() if name not in without}, "scheme": scheme})
            if made.digest() not in known:
                found.setdefault(made.digest(), made)
    return list(found.values())


def folder_of(recipe: Recipe, out: Path) -> Path:
    """Return OUT/<first 12 hex of the digest>."""
    return out / recipe.digest()[:12]


def run_in(recipe: Recipe, folder: Path, **how: Any) -> Run:
    """Run a recipe in its folder, or go on where it stopped, or return it if it is done.

    Raises BadInput if the folder holds another recipe, or a run on other data than those of a data_dir that is named now and was not
    then. Of a finished run data are not read otherwise, so what changed in their place is not seen.
    """
    check_folder(recipe, folder)
    done = (folder / "summary.json").exists()
    if not done or recipe.data_dir not in (None, toml.read(folder / "recipe.toml").get("data_dir")):
        run_recipe(recipe, folder, **how)
    check_trained(folder)
    return read(folder)


def compare(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    max_minutes: float | None = None,
    progress: Callable[[int, Recipe], Progress | None] = lambda i, recipe: None,
    failed: Callable[[Recipe, Exception], None] = lambda recipe, error: None,
) -> tuple[list[Run], bool]:
    """Run every recipe that is not done, in order; return what is done, and whether that is all.

    A run that fails, for want of memory too, or whose input is wrong, is told to `failed` and the others go on.
    After `max_minutes` the run in progress stops at its next mark.
    """
    deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    done, complete = [], True
    for i, recipe in enumerate(recipes):
        folder = folder_of(recipe, out)
        if deadline is not None and time.monotonic() > deadline and not (folder / "summary.json").exists():
            complete = False
            continue
        try:
            done.append(run_in(recipe, folder, progress=progress(i, recipe), deadline=deadline))
        except Paused:
            complete = False
        except (RunFailed, BadInput, RuntimeError, MemoryError, OSError, SafetensorError) as error:  # also a card that is full
            if len(recipes) == 1 and isinstance(error, BadInput):
                raise
            failed(recipe, error)
            complete = False
    return done, complete
