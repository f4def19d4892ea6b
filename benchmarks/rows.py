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
    command = "python " + " ".join([str(Path(sys.argv[0])), *sys.argv[1:]])
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**row, "command": command, **provenance()}) + "\n")
