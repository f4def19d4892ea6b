"""What two parties tell each other before they train together, and what keeps them from it."""

import platform
from collections.abc import Mapping
from typing import Any

import torch

from .printable import printable_values
from .provenance import processor
from .recipes.recipe import Recipe

# what is a party's own affair, or follows from data that nobody else sees
OWN = {
    "scheme", "name", "data", "data_dir", "num_train", "num_test", "num_held_out", "partition", "alpha",
    "partition_version", "classes_per_client", "device", "transport", "tap",
}  # fmt: skip


def about(recipe: Recipe) -> dict[str, Any]:
    """Return what a party says of itself: the fields that both sides must share, and what decides the bits it computes."""
    return {
        "recipe": {name: plain(value) for name, value in recipe.flat().items() if name not in OWN},
        "torch": torch.__version__, "processor": processor(), "machine": platform.machine(), "device": recipe.device,
    }  # fmt: skip


def plain(value: Any) -> Any:
    """Return a value as a control record brings it."""
    return printable_values(value)


def refusal(mine: Mapping[str, Any], theirs: Any) -> str | None:
    """Return which fields of two recipes differ, or None."""
    if not isinstance(theirs, dict):
        return "this hello has no recipe"
    names = [name for name in {**mine, **theirs} if name not in mine or name not in theirs or mine[name] != theirs[name]]
    if not names:
        return None
    shown = ", ".join(f"{name} = {mine.get(name)!r} at the server, {theirs.get(name)!r} at this client" for name in names[:3])
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the recipes differ: {shown}{more}; both ends need the same recipe"[:500]


def warning(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return in what another party computes differently, so that the weights are other bits than in one process, or None."""
    names = [name for name in ("torch", "processor", "machine", "device") if theirs.get(name) != mine[name]]
    if not names:
        return None
    shown = ", ".join(f"{name} {str(theirs.get(name))[:60]!r} (here {mine[name]!r})" for name in names)
    return f"computes with {shown}; the weights may be other bits than in one process"
