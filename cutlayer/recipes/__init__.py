"""Recipes: all fields of a run, by name, from a flat TOML file or from Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..methods import METHODS
from .named import RECIPES, named
from .recipe import FIELDS, Recipe, make, options_of, read
from .schemes import SCHEMES

__all__ = ["FIELDS", "RECIPES", "Recipe", "fields_of", "load", "override"]


def fields_of(name: str) -> dict[str, Any]:
    """Return the flat fields of a named recipe or of a TOML file; raises BadInput if it is neither."""
    path = Path(name)
    if path.suffix == ".toml" or (name not in RECIPES and path.exists()):
        return {"name": path.stem, **read(path)}
    return named(name)


def override(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of `base` with `changes`; a scheme among the changes replaces all that it decides.

    Options that `base` has for another method than the result's are left out; among the changes they are an error.
    """
    scheme = SCHEMES.get(str(changes.get("scheme")))
    merged = {**base, **(scheme.fields if scheme else {}), **changes}
    method = make({name: merged[name] for name in ("scheme", "method") if name in merged}).method
    own = set(options_of(method).__dataclass_fields__)  # type: ignore[attr-defined]
    foreign = {name for other in METHODS for name in options_of(other).__dataclass_fields__} - own  # type: ignore[attr-defined]
    return make({name: value for name, value in merged.items() if name in changes or name not in foreign})


def load(name: str, **overrides: Any) -> Recipe:
    """Return a named recipe, or one from a TOML file, with fields overridden; raises BadInput naming field and value."""
    return override(fields_of(name), overrides)
