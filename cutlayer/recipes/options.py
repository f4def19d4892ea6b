"""The options that methods and schedules add to a recipe: their classes, names, defaults and help texts."""

import dataclasses
from dataclasses import MISSING
from typing import Any, get_type_hints

from ..methods import METHODS
from ..named import found_class
from ..schedules import SCHEDULES


def help_of(kind: type) -> dict[str, str]:
    """Return the help text of each field of a recipe or of a method's options."""
    hints = get_type_hints(kind, include_extras=True)
    texts = {
        name: [text for text in getattr(hint, "__metadata__", ()) if isinstance(text, str)] for name, hint in hints.items()
    }
    return {field.name: "".join(texts[field.name][:1]) for field in dataclasses.fields(kind) if field.name != "options"}


def method_class(name: str) -> Any:
    """Return a method's class, from the table or from outside."""
    return found_class("method", name, METHODS)


def options_of(method: str) -> type:
    """Return the frozen dataclass of a method's options."""
    kind: type = method_class(method).Options
    return kind


def schedule_class(name: str) -> Any:
    """Return a schedule's class, from the table or from outside."""
    return found_class("schedule", name, SCHEDULES)


def defaults(kind: type) -> dict[str, Any]:
    """Return the default of each field of a dataclass that has one."""
    found = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in dataclasses.fields(kind)}
    return {name: value for name, value in found.items() if value is not MISSING}


def names_of(kind: type) -> set[str]:
    """Return the names of a dataclass's fields."""
    return {field.name for field in dataclasses.fields(kind)}


def owners() -> dict[str, type]:
    """Return who in the tables has options of its own, with their class: "method auxiliary_loss", ..."""
    found = {f"method {name}": options_of(name) for name in METHODS}
    return found | {f"schedule {name}": schedule_class(name).Options for name in SCHEDULES}
