"""Where a table's name is accepted, package.module:object is too, and installed packages may add rows by entry points."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .errors import BadInput, unknown

T = TypeVar("T")


def outside(kind: str) -> dict[str, Any]:
    """Return the rows that installed packages add to a table, by name (entry point group cutlayer.<kind>), not yet loaded."""
    return {point.name: point for point in entry_points(group=f"cutlayer.{kind}")}


def find(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """Return a table's row, or the object of an entry point or of package.module:object.

    Raises BadInput for a name that is none of these, and where the import itself fails.
    """
    if not isinstance(name, str) or name.startswith((":", ".")):
        raise BadInput(f"{kind} {name!r} is no name; give one of the table, or package.module:object")
    if name in table:
        return table[name]
    rows = outside(kind)
    if name not in rows and ":" not in name:
        raise unknown(kind, name, [*table, *rows])
    try:
        if name in rows:
            return rows[name].load()
        module, _, attribute = name.partition(":")
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a stranger's module may raise anything while it is imported
        raise BadInput(f"{kind} {name!r} cannot be imported ({_line(error)}); it must be package.module:object") from error
    return found


def found_class(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """Return the class that a row or an outside name stands for; raises BadInput if it has no dataclass of options."""
    found = find(kind, name, table)
    found = getattr(found, "build", found)
    if not (isinstance(found, type) and dataclasses.is_dataclass(getattr(found, "Options", None))):
        raise BadInput(f"{kind} = {name!r} is no {kind}: it must be a class with a frozen dataclass Options")
    return found


def made(kind: str, name: str, build: Callable[..., Any], want: type[T], *args: Any, **fields: Any) -> T:
    """Return what an outside name builds; raises BadInput if it raises, or gives something else than is wanted."""
    try:
        found = build(*args, **fields)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{kind} = {name!r} raised {type(error).__name__}: {_line(error)}") from error
    if not isinstance(found, want):
        raise BadInput(f"{kind} = {name!r} gives a {type(found).__name__}; it must give {_called(want)}")
    return found


def _called(kind: Any) -> str:
    return " or ".join(part.__name__ for part in getattr(kind, "__args__", (kind,)))


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
