"""Recipes as flat TOML files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput


def read(path: Path) -> dict[str, Any]:
    """Return the fields of a flat TOML file, which may begin with a byte order mark; raises BadInput if it is none, or has no field."""
    import tomllib

    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise BadInput(f"{path} is no recipe file: its values are nested too deeply; a recipe is flat") from error
    except (OSError, ValueError) as error:  # ValueError: no TOML, no UTF-8, or a path that cannot be one
        raise BadInput(f"{path} is no recipe file: {error}") from error
    if not fields:
        raise BadInput(f"{path} is no recipe file: it has no field; write at least one, as in cutlayer show demo")
    return fields


def to_toml(fields: Mapping[str, Any]) -> str:
    """Return fields as flat TOML; None is left out, which is the default everywhere."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{key} = {_value(item)}" for key, item in value.items())
            lines.append(f"{name} = {{{pairs}}}")
        elif value is not None:
            lines.append(f"{name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    # JSON, but that TOML knows no surrogate pairs, and no bare DEL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
