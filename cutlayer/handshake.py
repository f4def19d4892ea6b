"""What two parties tell each other before they train together, and what keeps them from it."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from .data.comparison import differences, remarks
from .data.description import describe, parse, to_json
from .data.partition import PARTITION_VERSION
from .data.sources import Data
from .errors import BadInput
from .frame import VERSION
from .printable import printable_values
from .provenance import processor
from .recipes.recipe import Recipe
from .run import data_of

LONGEST = 500  # characters of a refusal

# what is a party's own affair, or follows from data that nobody else sees
OWN = {
    "scheme", "name", "data", "data_dir", "num_train", "num_test", "num_held_out", "partition", "alpha",
    "partition_version", "classes_per_client", "device", "transport", "tap",
}  # fmt: skip
# fields that decide which samples a client's share of the recipe's data holds, beside the seed and num_clients
SHARES = ("num_train", "num_held_out", "partition", "alpha", "partition_version", "classes_per_client")


def about(recipe: Recipe, data: Data | None = None, *, dealt: bool = True) -> dict[str, Any]:
    """Return a party's part of the greeting: versions, the recipe's common fields, its data's description, its hardware.

    `data` are the recipe's, read here if they are not given. `dealt`: a client trains on its share of the recipe's data, so
    the fields that deal the shares are common too; else shares of two clients could overlap.
    """
    flat = recipe.flat()
    shares = {"shares": {name: plain(flat[name]) for name in SHARES}} if dealt else {}
    return shares | {
        "versions": versions(), "recipe": {name: plain(value) for name, value in flat.items() if name not in OWN},
        "data": to_json(describe(data_of(recipe) if data is None else data)),
        "torch": torch.__version__, "processor": processor(), "machine": platform.machine(), "device": recipe.device,
    }  # fmt: skip


def plain(value: Any) -> Any:
    """Return a value as a control record brings it."""
    return printable_values(value)


def versions() -> dict[str, str]:
    """Return the versions of what both parties must run alike."""
    return {"cutlayer": version("cutlayer"), "frames": str(VERSION), "partition": str(PARTITION_VERSION)}


def disagreement(mine: Mapping[str, Any], greeting: Mapping[str, Any], name: str) -> str | None:
    """Return in one line why the client of this name cannot take part, or None if versions, recipe and data agree.

    `mine` is the server's `about`, `greeting` an untrusted client's.
    """
    return (
        _other_versions(mine["versions"], greeting.get("versions"), name)
        or refusal(mine["recipe"], greeting.get("recipe"))
        or (refusal(mine["shares"], greeting["shares"]) if "shares" in greeting else None)
        or _other_data(mine["data"], greeting.get("data"), name)
    )


def doubts(mine: Mapping[str, Any], greeting: Mapping[str, Any]) -> list[str]:
    """Return in sentences what could not be compared, or differs without harm, between a server and a client that agree."""
    data = remarks(parse(mine["data"]), parse(greeting["data"]))
    computed = warning(mine, greeting)
    return [*([computed] if computed else []), *data]


def _other_versions(mine: Mapping[str, str], theirs: Any, name: str) -> str | None:
    theirs = theirs if isinstance(theirs, dict) else {}
    said = [
        f"{what} {mine[what]} at the server and {theirs.get(what, 'unknown')!r:.40} at {name}"
        for what in mine
        if theirs.get(what) != mine[what]
    ]
    return f"the versions differ: {', '.join(said)}; install the same version of cutlayer at both ends" if said else None


def _other_data(mine: Any, theirs: Any, name: str) -> str | None:
    try:
        found = differences(parse(mine), parse(theirs), name)
    except BadInput as error:
        return str(error)
    if not found:
        return None
    remedy = "; all sites need the same classes, columns, shapes and preprocessing"
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return f"the data differ: {', '.join(found[:3])}{more}"[: LONGEST - len(remedy)] + remedy


def refusal(mine: Mapping[str, Any], theirs: Any) -> str | None:
    """Return which fields of two recipes differ, or None."""
    if not isinstance(theirs, dict):
        return "this hello has no recipe"
    names = [name for name in {**mine, **theirs} if name not in mine or name not in theirs or mine[name] != theirs[name]]
    if not names:
        return None
    shown = ", ".join(f"{name} = {mine.get(name)!r} at the server, {theirs.get(name)!r} at this client" for name in names[:3])
    more = f", and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the recipes differ: {shown}{more}; both ends need the same recipe"[:LONGEST]


def warning(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Return in what another party computes differently, so that the weights are other bits than in one process, or None."""
    names = [name for name in ("torch", "processor", "machine", "device") if theirs.get(name) != mine[name]]
    if not names:
        return None
    shown = ", ".join(f"{name} {str(theirs.get(name))[:60]!r} (here {mine[name]!r})" for name in names)
    return f"computes with {shown}; the weights may be other bits than in one process"
