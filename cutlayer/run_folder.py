"""A run's folder: one process at a time, one recipe and its data, records that no mark belongs to, and trained weights."""

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import nn

from .data.partition import Partition
from .descriptors import wait_for_descriptors
from .errors import Advice, BadInput, Busy
from .integrity import INDEX, write_index
from .private import FILE, make_folder
from .recipes.recipe import Recipe, make
from .recipes.recorded import recorded
from .recipes.toml import read
from .schema import json_table


@wait_for_descriptors
def save_weights(modules: Mapping[str, nn.Module], folder: Path) -> None:
    """Write trained modules as folder/<name>.safetensors, and their SHA-256 as folder/index.json."""
    make_folder(folder)
    (folder / INDEX).unlink(missing_ok=True)  # of weights that are replaced
    for name, module in modules.items():
        path = folder / f"{name}.safetensors"
        save_file({k: v.contiguous().clone() for k, v in module.state_dict().items()}, path)
        path.chmod(FILE)
    write_index(folder, [f"{name}.safetensors" for name in modules])


def set_aside(path: Path) -> None:
    """Rename records that no mark belongs to, and tell it: the run begins anew, and nothing that was written is lost."""
    if not path.exists() or not path.stat().st_size:
        return
    kept = next(new for i in itertools.count(1) if not (new := path.with_name(f"{path.name}.{i}")).exists())
    path.rename(kept)
    told = "has records, and no mark to go on from: the run begins anew; the records are kept in"
    warnings.warn(f"{path.parent} {told} {kept.name}", Advice, stacklevel=1)


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Keep other processes out of a run's folder; raises Busy if one is at work there, BadInput if the folder cannot be written."""
    if folder is None:
        yield
        return
    lock = FileLock(folder / ".lock", mode=FILE)
    try:
        make_folder(folder)
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(f"another process is at work in {folder}; wait for it, or choose another --out") from None
    except OSError as error:
        raise BadInput(f"out = {str(folder)!r} cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def check_folder(recipe: Recipe, folder: Path) -> None:
    """Raise BadInput if a folder holds a run of another recipe, or runs in folders of their own and a page of them."""
    written = folder / "recipe.toml"
    if not written.exists():
        if (folder / "report.html").exists():
            raise BadInput(f"{folder} holds a comparison's page, which this run's would replace; choose another --out")
        return
    try:
        other = make(recorded(read(written)))
    except BadInput as error:
        raise BadInput(f"{folder} holds a recipe of another version ({error}); choose another --out, or delete it") from error
    if other.digest() != recipe.digest():
        version = other.partition_version
        of_version = f", with partition_version = {version}" if version != recipe.partition_version else ""
        raise BadInput(f"{folder} holds another recipe{of_version}; choose another --out, or delete it")


def check_data(clients: Partition, release: str, folder: Path) -> None:
    """Raise BadInput if a folder holds a run on other data, or on other shares of them."""
    files = (folder / name for name in ("partition.json", "summary.json"))
    written = [json_table(path) for path in files if path.exists()]
    other = next((found["release"] for found in written if "release" in found), release)
    if other != release:
        raise BadInput(f"{folder} holds a run on other data ({other}) than these ({release}); choose another --out")
    shares = next((found["shares"] for found in written if "shares" in found), None)
    if shares not in (None, [share.tolist() for share in clients.shares]):
        raise BadInput(f"{folder} holds a run whose clients have other shares of the data; choose another --out, or delete it")
