"""One optional flag for every field of a recipe and every option of a method or schedule, and where a run is written."""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from .errors import BadInput
from .recipes import Recipe
from .recipes.options import help_of, owners

PATHS = ("--out", "--data-dir", "--data_dir", "--weights", "--ca", "--cert", "--key")


def _flags() -> type:
    """Return a dataclass of the flags; values stay text until the recipe checks them."""
    helps = help_of(Recipe)
    having: dict[str, list[str]] = {}
    for owner, kind in owners().items():
        helps |= help_of(kind)
        for name in help_of(kind):
            having.setdefault(name, []).append(owner)
    helps |= {name: f"{helps[name]} (option of {' and '.join(found)})" for name, found in having.items()}
    fields = [
        (name, Annotated[str | None, arg(help=text, metavar="VALUE", help_behavior_hint="(else the recipe's)")], None)
        for name, text in helps.items()
    ]
    return dataclasses.make_dataclass("Fields", fields, frozen=True)


Fields = _flags()


def given(fields: Any) -> dict[str, Any]:
    """Return the recipe's fields that were given, by name."""
    return {name: none(name, value) for name, value in dataclasses.asdict(fields).items() if value is not None}


def none(name: str, value: str) -> str | None:
    """Read "none" as nothing where a field may be nothing; elsewhere it is a name."""
    default = getattr(Recipe, name, "")
    return None if value == "none" and default is None else value


def folder_of(recipe: Recipe, party: str = "") -> Path:
    """Return the folder that a run, or one party of it, writes to if none is named."""
    called = re.sub(r"[^\w.-]+", "-", recipe.name).strip(".") or "run"
    return Path("runs") / f"{called}-{recipe.digest()[:8]}{party}"


def current_folder() -> str:
    """Return the current folder; raises BadInput if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise BadInput("the current folder does not exist any more; change to one that does") from None


def check_paths(words: Sequence[str]) -> None:
    """Raise BadInput if a path among the words of a command is empty, as an unset variable leaves it: it would be the current folder."""
    assigned = [(flag, value) for flag, mark, value in (word.partition("=") for word in words) if mark]
    for flag, value in [*itertools.pairwise(words), *assigned]:
        if flag in PATHS and not value:
            raise BadInput(f"{flag} is empty; name a path, or . for the current folder")
