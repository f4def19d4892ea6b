"""An index of a folder's files with their SHA-256, so that a damaged one is found before it is used."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import BadInput
from .private import write

INDEX, FORMAT = "index.json", 1


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(folder: Path, names: Iterable[str]) -> None:
    """Write folder/index.json: the SHA-256 of each of the named files, as they lie there."""
    write(folder / INDEX, json.dumps({"format": FORMAT, "sha256": {name: digest(folder / name) for name in names}}, indent=1))


def read_index(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by name; raises ValueError if the index is missing, damaged or of another format."""
    path = folder / INDEX
    if not path.exists():
        raise ValueError(f"it has no {INDEX}: it is not whole, or an earlier version wrote it")
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("sha256"), dict):
        raise ValueError(f"its {INDEX} is damaged, or another version wrote it")
    return dict(found["sha256"])


def check_files(folder: Path) -> list[str]:
    """Return the names of a folder's files; raises ValueError naming one that is missing or not as it was written."""
    found = read_index(folder)
    for name, expected in found.items():
        if not (folder / name).is_file() or digest(folder / name) != expected:
            raise ValueError(f"its file {name} is damaged: the SHA-256 is not that of {INDEX}")
    return list(found)


def check_weights(path: Path) -> None:
    """Raise BadInput if a file of trained weights is not as it was written; without an index (earlier versions) nothing is known."""
    if not (path.parent / INDEX).exists():
        return
    try:
        expected = read_index(path.parent).get(path.name)
    except ValueError as error:
        raise BadInput(f"{path.parent} cannot be read ({error}); {_remedy(path)}") from error
    if expected is not None and path.exists() and digest(path) != expected:
        raise BadInput(f"{path} cannot be read (it is damaged: its SHA-256 is not that of {INDEX}); {_remedy(path)}")


def check_trained(folder: Path) -> None:
    """Raise BadInput if a weights file of a finished run is damaged or missing."""
    weights = folder / "weights"
    if not (weights / INDEX).exists():  # an earlier version wrote it, or it is gone
        if not any(weights.glob("*.safetensors")):
            raise BadInput(f"{weights} holds no trained weights; {_remedy(weights / INDEX)}")
        for path in weights.glob("*.safetensors"):
            try:
                with safe_open(path, "pt") as file:
                    file.keys()
            except (OSError, SafetensorError) as error:
                raise BadInput(f"{path} cannot be read ({error}); {_remedy(path)}") from error
        return
    try:
        names = list(read_index(weights))
    except ValueError as error:
        raise BadInput(f"{weights} cannot be read ({error}); {_remedy(weights / INDEX)}") from error
    for path in map(weights.joinpath, names):
        if not path.exists():
            raise BadInput(f"{path} is missing; {_remedy(path)}")
        check_weights(path)


def _remedy(path: Path) -> str:
    return f"delete {path.parent.parent}, and run again, or restore the file from a copy"
