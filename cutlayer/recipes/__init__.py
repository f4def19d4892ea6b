"""Recipes: all fields of a run, by name, from a flat TOML file or from Python."""

from pathlib import Path
from typing import Any

from .named import RECIPES, named
from .recipe import FIELDS, Recipe, make, read

__all__ = ["FIELDS", "RECIPES", "Recipe", "fields_of", "load"]


def fields_of(name: str) -> dict[str, Any]:
    """Return the flat fields of a named recipe or of a TOML file; raises BadInput if it is neither."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return {"name": path.stem, **read(path)}
    return named(name)


def load(name: str, **overrides: Any) -> Recipe:
    """Return a named recipe, or one from a TOML file, with fields overridden; raises BadInput naming field and value."""
    return make({**fields_of(name), **overrides})
