"""cutlayer list: what can be named, each with one line."""

from collections.abc import Mapping
from typing import Any

from tyro.conf import Positional

from .console import show_lists, show_schemes
from .errors import unknown
from .methods import METHODS
from .recipes.schemes import SCHEMES


def list_(kind: Positional[str] = "", /) -> int:
    """Print what can be named, each with one line.

    Args:
        kind: schemes, methods, models, heads, regressors, data, recipes, codecs, schedules, partitions, audits; all if not given.
    """
    tables = _tables()
    if kind == "schemes":
        show_schemes(SCHEMES)
        return 0
    if kind and kind not in tables:
        raise unknown("kind", kind, tables)
    show_lists({name: lines for name, lines in tables.items() if kind in ("", name)})
    return 0


def _tables() -> dict[str, Mapping[str, str]]:
    from .audits import AUDITS
    from .codecs import CODECS
    from .data import DATASETS
    from .data.partition import PARTITIONS
    from .models import MODELS
    from .models.heads import HEADS
    from .models.regressors import REGRESSORS
    from .named import outside
    from .recipes.named import RECIPES
    from .schedules import SCHEDULES

    named: dict[str, tuple[str, Mapping[str, Any]]] = {
        "schemes": ("scheme", SCHEMES), "methods": ("method", METHODS), "models": ("model", MODELS), "heads": ("auxiliary", HEADS),
        "regressors": ("regressor", REGRESSORS),
        "data": ("data", DATASETS), "recipes": ("recipe", RECIPES), "codecs": ("codec", CODECS),
        "schedules": ("schedule", SCHEDULES), "partitions": ("partition", PARTITIONS), "audits": ("audit", AUDITS),
    }  # fmt: skip
    return {
        plural: {name: row.line for name, row in table.items()}
        | {name: f"from {point.value}" for name, point in outside(kind).items()}
        for plural, (kind, table) in named.items()
    }
