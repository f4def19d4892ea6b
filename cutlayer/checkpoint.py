"""Marks on disk: trees of dicts, lists, numbers and tensors, as safetensors and JSON, written whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .descriptors import is_exhausted, wait_for_descriptors
from .errors import BadInput
from .integrity import check_files, write_index
from .private import FILE, make_folder, write

KEEP = 2


def _file_of(path: tuple[Any, ...], file: str) -> str:
    """Return which file holds the tensors at a path of a mark's tree: one for each party."""
    if path[:-1] == ("parties", "clients"):
        return f"client{path[-1]}"
    return "server" if path == ("parties", "server") else file


def _strip(tree: Any, files: dict[str, dict[str, Tensor]], file: str = "tensors", path: tuple[Any, ...] = ()) -> Any:
    file = _file_of(path, file)
    if isinstance(tree, Tensor):
        tensors = files.setdefault(file, {})
        key = str(len(tensors))
        # as they lie in memory, because sums of another layout have other last bits
        strides = tree.stride()
        order = sorted(range(tree.dim()), key=lambda d: -strides[d])
        tensors[key] = tree.detach().cpu().permute(order).contiguous().clone()
        return {"tensor": [file, key]} if order == sorted(order) else {"permuted": [file, key, order]}
    if isinstance(tree, dict):
        return {"dict": [[key, _strip(value, files, file, (*path, key))] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [_strip(value, files, file, (*path, i)) for i, value in enumerate(tree)]}
    return {"value": tree}


def _dress(tree: Any, files: dict[str, dict[str, Tensor]]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        file, key = value
        return files[file][key]
    if kind == "permuted":
        file, key, order = value
        return files[file][key].permute(sorted(range(len(order)), key=order.__getitem__))
    if kind == "dict":
        return {key: _dress(item, files) for key, item in value}
    if kind == "list":
        return [_dress(item, files) for item in value]
    return value


@wait_for_descriptors
def save(folder: Path, name: str, tree: Any, keep: int = KEEP) -> None:
    """Write a mark as folder/name, atomically, and delete all but the newest `keep` marks; names sort by age.

    A mark is a folder: a safetensors file for each party, tree.json with everything else, and index.json with their SHA-256.
    """
    files: dict[str, dict[str, Tensor]] = {}
    stripped = _strip(tree, files)
    new = folder / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    make_folder(new)
    for file, tensors in files.items():
        save_file(tensors, new / f"{file}.safetensors")
        (new / f"{file}.safetensors").chmod(FILE)
    write(new / "tree.json", json.dumps(stripped))
    write_index(new, [path.name for path in new.iterdir()])
    for path in [*new.iterdir(), new]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder / name, ignore_errors=True)
    os.replace(new, folder / name)
    for old in marks(folder)[:-keep]:
        shutil.rmtree(old)


def marks(folder: Path) -> list[Path]:
    """Return the finished marks of a folder, oldest first; what has another name than a number is none of them."""
    return sorted(path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir())


@wait_for_descriptors
def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return the tree of a mark; raises BadInput if it is damaged."""
    try:
        names = [name.removesuffix(".safetensors") for name in check_files(path) if name.endswith(".safetensors")]
        files = {name: load_file(path / f"{name}.safetensors", device=str(device)) for name in names}
        return _dress(json.loads((path / "tree.json").read_text(encoding="utf-8")), files)
    except Exception as error:
        if is_exhausted(error):
            raise
        raise BadInput(f"the mark {path} cannot be read ({error}); delete it, and the one before it is used") from error
