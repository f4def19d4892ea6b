"""Where a table's name is accepted, package.module:object is too, and installed packages may add rows by entry points."""

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from .errors import BadInput, unknown


def outside(kind: str) -> dict[str, Any]:
    """Return the rows that installed packages add to a table, by name (entry point group cutlayer.<kind>), not yet loaded."""
    return {point.name: point for point in entry_points(group=f"cutlayer.{kind}")}


def find(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """Return a table's row, or the object of an entry point or of package.module:object.

    Raises BadInput for a name that is none of these.
    """
    if name in table:
        return table[name]
    rows = outside(kind)
    if name in rows:
        return rows[name].load()
    if ":" not in name:
        raise unknown(kind, name, [*table, *rows])
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{kind} {name!r} cannot be imported ({error}); it must be package.module:object") from error
    return found
