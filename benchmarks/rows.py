"""Rows of results: each carries its command, commit, machine and versions, and is written when it is known."""

import errno
import json
import os
import shlex
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from cutlayer.errors import BadInput
from cutlayer.provenance import provenance
from cutlayer.recipes import recorded
from cutlayer.schema import line_table

RESULTS = Path(__file__).parent / "results"
MACHINE = {"data_dir", "device", "num_threads", "precision"}  # fields that say where a run was, not what it was
NAMES = {"scheme"}  # fields that only name others
COMPARED = {"device", "precision"}  # those within which runs are compared


def written(name: str, recipe: Mapping[str, Any] | None = None, **labels: Any) -> bool:
    """Return whether results/<name>.jsonl has a row with these labels, of this recipe, device and precision as far as it knows them."""
    return any(labelled(row, labels) and (not recipe or same(row["recipe"], recipe, MACHINE - COMPARED)) for row in read(name))


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of a results file, oldest first; raises BadInput naming a line that is none."""
    path, found = RESULTS / f"{name}.jsonl", []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            found.append(line_table(line))
        except ValueError as error:
            raise BadInput(f"{path}, line {number} is no row ({error}); delete it, and its run writes it again") from error
    return found


def labelled(row: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Return whether a row has all of these values."""
    return all(row.get(key) == value for key, value in labels.items())


def same(row: Mapping[str, Any], recipe: Mapping[str, Any], but: Set[str] = MACHINE) -> bool:
    """Return whether the fields of a row's recipe, which may be of an earlier version, are those of a recipe."""
    then, now = recorded(row), json.loads(json.dumps(recipe))
    return all(then[key] == now[key] for key in then.keys() & now.keys() - but - NAMES)


def write(name: str, row: dict[str, Any]) -> None:
    """Append a row to results/<name>.jsonl, whole or not at all; raises BadInput if it cannot be written.

    Where a row already says when its run began, commit and machine are those of then.
    """
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    if "recipe" in row:  # where the data lay is nobody's business
        row = {**row, "recipe": {**row["recipe"], "data_dir": None}}
    _append(RESULTS / f"{name}.jsonl", json.dumps({"command": command, **provenance(), **row}).encode() + b"\n")


def _append(path: Path, line: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            line = line if file.read(1) in (b"", b"\n") else b"\n" + line  # what was cut off there stays a line of its own
            if file.write(line) < len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); mend it, and the same command writes the row") from error
