"""Recipes that earlier versions of the package recorded."""

from collections.abc import Mapping
from typing import Any


def recorded(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a recorded recipe, with what held for its run before a field existed.

    A Dirichlet partition without a version was made with version 1.
    """
    before = {"partition_version": 1} if fields.get("partition") == "dirichlet" else {}
    return {**before, **fields}
