"""Rows of results: each carries its command, commit, machine and versions, and is written when it is known."""

import json
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from cutlayer.outputs import provenance

RESULTS = Path(__file__).parent / "results"
MACHINE = {"data_dir", "device", "num_threads", "precision"}  # fields that say where a run was, not what it was


def written(name: str, recipe: Mapping[str, Any] | None = None, **labels: Any) -> bool:
    """Return whether results/<name>.jsonl has a row with these labels, of this recipe and precision as far as the row knows its fields."""
    return any(
        labelled(row, labels) and (not recipe or same(row["recipe"], recipe, MACHINE - {"precision"})) for row in read(name)
    )


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a results file, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def labelled(row: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Return whether a row has all of these values."""
    return all(row.get(key) == value for key, value in labels.items())


def same(row: Mapping[str, Any], recipe: Mapping[str, Any], but: Set[str] = MACHINE) -> bool:
    """Return whether the fields of a row's recipe, which may be of an earlier version, are those of a recipe."""
    now = json.loads(json.dumps(recipe))
    return all(row[key] == now[key] for key in row.keys() & now.keys() - but)


def write(name: str, row: dict[str, Any]) -> None:
    """Append a row to results/<name>.jsonl; where it already says when its run began, commit and machine are those of then."""
    RESULTS.mkdir(exist_ok=True)
    command = "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    if "recipe" in row:  # where the data lay is nobody's business
        row = {**row, "recipe": {**row["recipe"], "data_dir": None}}
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({"command": command, **provenance(), **row}) + "\n")
