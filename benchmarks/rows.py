"""Rows of results: each carries its command, commit, machine and versions, and is written when it is known."""

import json
import sys
from pathlib import Path
from typing import Any

from cutlayer.outputs import provenance

RESULTS = Path(__file__).parent / "results"


def write(name: str, row: dict[str, Any]) -> None:
    """Append a row to results/<name>.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    command = "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    if "recipe" in row:  # where the data lay is nobody's business
        row = {**row, "recipe": {**row["recipe"], "data_dir": None}}
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**row, "command": command, **provenance()}) + "\n")
