"""One optional flag for every field of a recipe and every option of a method or schedule, and where a run is written."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from .recipes import Recipe
from .recipes.recipe import help_of, owners


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
