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

KEEP = 2


def _strip(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        key = str(len(tensors))
        # as they lie in memory, because sums of another layout have other last bits
        strides = tree.stride()
        order = sorted(range(tree.dim()), key=lambda d: -strides[d])
        tensors[key] = tree.detach().cpu().permute(order).contiguous().clone()
        return {"tensor": key} if order == sorted(order) else {"permuted": [key, order]}
    if isinstance(tree, dict):
        return {"dict": [[key, _strip(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [_strip(value, tensors) for value in tree]}
    return {"value": tree}


def _dress(tree: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "permuted":
        key, order = value
        return tensors[key].permute(sorted(range(len(order)), key=order.__getitem__))
    if kind == "dict":
        return {key: _dress(item, tensors) for key, item in value}
    if kind == "list":
        return [_dress(item, tensors) for item in value]
    return value


@wait_for_descriptors
def save(folder: Path, name: str, tree: Any, keep: int = KEEP) -> None:
    """Write a mark as folder/name, atomically, and delete all but the newest `keep` marks; names sort by age."""
    tensors: dict[str, Tensor] = {}
    stripped = _strip(tree, tensors)
    new = folder / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(tensors, new / "tensors.safetensors")
    (new / "tree.json").write_text(json.dumps(stripped))
    for path in [*new.iterdir(), new]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder / name, ignore_errors=True)
    os.replace(new, folder / name)
    for old in marks(folder)[:-keep]:
        shutil.rmtree(old)


def marks(folder: Path) -> list[Path]:
    """Return the finished marks of a folder, oldest first."""
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir())


@wait_for_descriptors
def load(path: Path, device: torch.device | str = "cpu") -> Any:
    """Return the tree of a mark; raises BadInput if it is damaged."""
    try:
        tensors = load_file(path / "tensors.safetensors", device=str(device))
        return _dress(json.loads((path / "tree.json").read_text()), tensors)
    except Exception as error:
        if is_exhausted(error):
            raise
        raise BadInput(f"the mark {path} cannot be read ({error}); delete it, and the one before it is used") from error
