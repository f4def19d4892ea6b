"""The product of everything: one run per cell, resumable between runs and inside them."""

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import BadInput, RunFailed
from .recipes import Recipe, override
from .recipes.recipe import make, read as read_fields
from .report import Run, read
from .run import Paused, Progress, run_recipe

Over = Mapping[str, Sequence[Any]]


def cells(fields: Mapping[str, Any], over: Over, seeds: Sequence[int]) -> Iterator[Recipe]:
    """Yield a recipe for every combination of the values in `over` and every seed.

    Options that belong to another method than the cell's are left out, so one recipe can be compared over methods.
    Raises BadInput as `recipes.make` does.
    """
    for values in itertools.product(*over.values(), seeds):
        yield override(fields, dict(zip([*over, "seed"], values, strict=True)))


def folder_of(recipe: Recipe, out: Path) -> Path:
    """Return OUT/<first 12 hex of the digest>."""
    return out / recipe.digest()[:12]


def run_in(recipe: Recipe, folder: Path, **how: Any) -> Run:
    """Run a recipe in its folder, or go on where it stopped, or return it if it is done.

    Raises BadInput if the folder holds another recipe.
    """
    written = folder / "recipe.toml"
    if written.exists():
        try:
            other = make(read_fields(written))
        except BadInput as error:
            raise BadInput(
                f"{folder} holds a recipe of another version ({error}); choose another --out, or delete it"
            ) from error
        if other.digest() != recipe.digest():
            raise BadInput(f"{folder} holds another recipe; choose another --out, or delete it")
    if not (folder / "summary.json").exists():
        run_recipe(recipe, folder, **how)
        shutil.rmtree(folder / "marks", ignore_errors=True)
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

    A run that fails is told to `failed` and the others go on. After `max_minutes` the run in progress stops at its next mark.
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
        except RunFailed as error:
            failed(recipe, error)
            complete = False
    return done, complete
