"""Folders and files that only their owner can read, whatever the umask is: they hold data, weights or keys."""

import os
from pathlib import Path

from .descriptors import wait_for_descriptors

FOLDER, FILE = 0o700, 0o600


def make_folder(folder: Path) -> Path:
    """Make a private folder, and those above it that are missing, and return it; a folder that exists keeps its mode."""
    for path in reversed([folder, *folder.parents]):
        if not path.is_dir():
            path.mkdir(FOLDER, exist_ok=True)
    return folder


@wait_for_descriptors
def write(path: Path, content: str | bytes) -> None:
    """Write a private file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE), "wb") as file:
        os.fchmod(file.fileno(), FILE)  # one that was left here may have another mode
        file.write(content if isinstance(content, bytes) else content.encode())
    os.replace(new, path)
