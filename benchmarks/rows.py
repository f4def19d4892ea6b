"""Rows of results: each carries its command, commit, machine and versions, and is written when it is known."""

import json
import sys
from pathlib import Path
from typing import Any

from cutlayer.outputs import provenance

RESULTS = Path(__file__).parent / "results"


def written(name: str, **fields: Any) -> bool:
    """Return whether results/<name>.jsonl has a row with these values."""
    path = RESULTS / f"{name}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return any(all(row.get(key) == value for key, value in fields.items()) for row in map(json.loads, lines))


def write(name: str, row: dict[str, Any]) -> None:
    """Append a row to results/<name>.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    command = "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    if "recipe" in row:  # where the data lay is nobody's business
        row = {**row, "recipe": {**row["recipe"], "data_dir": None}}
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**row, "command": command, **provenance()}) + "\n")
