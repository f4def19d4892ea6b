"""Recipes: all fields of a run, by name, from a flat TOML file or from Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .named import RECIPES, named
from .options import names_of, owners
from .recipe import CUSTOM, FIELDS, Recipe, make, options_for, replaced, with_scheme
from .recorded import recorded
from .schemes import SCHEMES
from .toml import read

__all__ = ["FIELDS", "RECIPES", "Recipe", "fields_of", "load", "options_of", "override", "recorded"]


def fields_of(name: str) -> dict[str, Any]:
    """Return the flat fields of a named recipe or of a TOML file; raises BadInput if it is neither."""
    path = Path(name)
    if path.suffix == ".toml" or (name not in RECIPES and path.exists()):
        fields = read(path)
        of_a_run = path.with_name("partition.json").exists()
        return {"name": path.stem, **(recorded(fields) if of_a_run else fields)}
    return named(name)


def override(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of `base` with `changes`; a scheme among the changes replaces all that it decides.

    Options that `base` has for another method or schedule than the result's are left out; among the changes they are an error.
    """
    if changes.get("scheme") == CUSTOM:
        raise BadInput(
            f"scheme = {CUSTOM!r} stands for no fields; name a scheme of cutlayer list schemes, or change single fields"
        )
    scheme = SCHEMES.get(str(changes.get("scheme")))
    changed = {**(scheme.fields if scheme else {}), **changes}
    before = with_scheme(base)
    every = set().union(*map(names_of, owners().values()))
    lost = changed.keys() | replaced(before, changed) | (every - options_of(base, changes))
    return make({**{name: value for name, value in base.items() if name not in lost}, **changes})


def options_of(base: Mapping[str, Any], changes: Mapping[str, Any]) -> set[str]:
    """Return the names of the options that the method and the schedule of `base` with `changes` have."""
    scheme = SCHEMES.get(str(changes.get("scheme")))
    return options_for({**with_scheme(base), **(scheme.fields if scheme else {}), **changes})


def load(name: str, /, **overrides: Any) -> Recipe:
    """Return a named recipe, or one from a TOML file, with fields overridden; raises BadInput naming field and value."""
    return override(fields_of(name), overrides)
