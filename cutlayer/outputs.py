"""What a run leaves behind: records as they come, marks, the summary, weights, and events for TensorBoard."""

import itertools
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from . import checkpoint
from .building import left_out
from .costs import macs
from .cut import Parts
from .data.items import read_batch
from .data.partition import Partition, save as save_partition
from .descriptors import wait_for_descriptors
from .errors import Advice, BadInput, Busy
from .integrity import INDEX, check_weights, write_index
from .meter import PHASES, Direction, Meter
from .parties import Parties
from .private import FILE, make_folder, write
from .provenance import provenance
from .recipes.legal import switched_off
from .recipes.recipe import Recipe, make
from .recipes.recorded import recorded
from .recipes.toml import read, to_toml
from .runs import MEMORY_FIGURE
from .schema import json_table
from .transports.link import Tap
from .wire import Packed, dumps


@dataclass
class Result:
    """A finished run: `summary` and `records` as in OUT/, the trained modules by name, and where it was written."""

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    modules: dict[str, nn.Module] = field(repr=False)
    out: Path | None = None

    @property
    def parts(self) -> Parts:
        """The trained bottom, top and tail; raises BadInput where every client has its own (`modules` has them all)."""
        if "bottom" not in self.modules:
            raise BadInput("every client of this run has a bottom of its own; take result.modules['bottom-0'], ...")
        return Parts(self.modules["bottom"], self.modules["top"], self.modules.get("tail"))

    def report(self, path: str | Path) -> Path:
        """Write this run's page of figures, which needs no network to be read, and return its path."""
        from .report import Run, write

        return write([Run(self.summary, self.records)], Path(path))


class Outputs:
    """Writes OUT/ while a run goes on; without a folder it only remembers."""

    def __init__(self, recipe: Recipe, out: Path | None, clients: Partition, release: str) -> None:
        self.recipe, self.out, self.clients, self.release = recipe, out, clients, release
        self.records: list[dict[str, Any]] = []
        self.elapsed, self.began = 0.0, time.perf_counter()
        self.marks = 0
        self.reproducible = True  # False: a data set has a random generator of its own
        self.provenance = provenance()  # now, because files may change while a long run goes on
        if out is not None:
            check_folder(recipe, out)
            check_data(clients, release, out)
            make_folder(out)
            write(out / "recipe.toml", to_toml(recipe.flat()))
            save_partition(clients, out / "partition.json", release)
            if not checkpoint.marks(out / "marks") and not (out / "summary.json").exists():
                set_aside(out / "records.jsonl")
                write(out / "records.jsonl", "")

    def seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.began

    def round(self, record: dict[str, Any], meter: Meter) -> None:
        """Add a finished round: its figures, and cumulated bytes and seconds."""
        table = meter.bytes_by_role()
        record["bytes"] = {
            d: {role: cell["payload"] for role, cell in roles.items() if cell["payload"]} for d, roles in table.items()
        }
        record["seconds"] = {name: meter.seconds.get(name, 0.0) for name in PHASES}
        record["seconds_total"] = self.seconds()
        if meter.simulated is not None:
            record["simulated_seconds"] = meter.simulated
        self.records.append(record)
        self._write_records()

    def _write_records(self) -> None:
        if self.out is not None:
            write(self.out / "records.jsonl", "".join(json.dumps(record) + "\n" for record in self.records))

    def mark(self, parties: Parties, done: int) -> None:
        """Write a mark from which the run goes on, bit for bit."""
        if self.out is None:
            return
        mine = {"records": json.dumps(self.records), "elapsed": self.seconds(), "marks": self.marks + 1}
        self.marks += 1
        checkpoint.save(self.out / "marks", f"{self.marks:08d}", {"parties": parties.state(), "outputs": mine, "done": done})

    def load(self, state: dict[str, Any]) -> None:
        self.records, self.elapsed, self.marks = json.loads(state["records"]), state["elapsed"], state["marks"]
        self._write_records()

    def tap(self) -> Tap | None:
        """Return what writes every message to OUT/tap, if the recipe asks for it."""
        if not self.recipe.tap or self.out is None:
            return None
        folder = self.out / "tap"
        make_folder(folder)
        count = len(list(folder.iterdir()))

        def keep(direction: Direction, packed: Packed) -> None:
            nonlocal count
            write(folder / f"{count:08d}-{direction}-{packed.message.kind}.frame", dumps(packed))
            count += 1

        return keep

    def finish(self, parties: Parties) -> Result:
        """Write the summary, the weights, the report and the events, and return the result."""
        modules = parties.modules()
        if self.out is not None:
            save_weights(modules, self.out / "weights")  # first, so no figure that cannot be computed loses them
        result = Result(self.summary(parties), self.records, modules, self.out)
        if self.out is not None:
            if parties.clock is not None:
                write(self.out / "order.json", json.dumps(parties.clock.order))
            result.report(self.out / "report.html")
            wait_for_descriptors(self._events)()
            # last, because a run whose summary exists is done
            write(self.out / "summary.json", json.dumps(result.summary, indent=1))
            shutil.rmtree(self.out / "marks", ignore_errors=True)
        return result

    def finished(self, parties: Parties) -> Result:
        """Return the result of the run that is already done in this folder, with its weights; raises BadInput if a file is damaged."""
        from .report import read as read_run

        assert self.out is not None
        folder = self.out / "weights"
        modules = parties.modules(
            sorted(int(path.stem.removeprefix("bottom-")) for path in folder.glob("bottom-*.safetensors"))
        )
        for name, module in modules.items():
            path = folder / f"{name}.safetensors"
            check_weights(path)
            try:
                module.load_state_dict(load_file(path))
            except (OSError, RuntimeError, SafetensorError) as error:
                why = str(error).partition("\n")[0]
                raise BadInput(f"{path} cannot be read ({why}); delete {self.out}, and run again") from error
        run = read_run(self.out)
        return Result(run.summary, run.records, modules, self.out)

    def _events(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        assert self.out is not None
        shutil.rmtree(self.out / "events", ignore_errors=True)  # of an end that was cut short
        make_folder(self.out / "events")
        writer = SummaryWriter(self.out / "events")
        for record in self.records:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "round":
                    writer.add_scalar(name, value, record["round"] + 1)
        writer.close()

    def summary(self, parties: Parties) -> dict[str, Any]:
        """Return everything of summary.json."""
        meter, task = parties.meter, parties.one.task
        metric = next(iter(task.metrics))
        curve = [record[metric] for record in self.records if metric in record]
        table: dict[str, Any] = dict(meter.bytes_by_role())
        table["client"] = {f"client{k}": n for k, n in sorted(meter.bytes_by_client().items())}
        handed_on = ("weights", "optimizer") if self.recipe.schedule == "relay" else ()
        table["peer_hand_over"] = sum(table["down"].get(role, {"payload": 0})["payload"] for role in handed_on)
        source = self.clients.source
        assert source is not None
        one = parties.parts()
        return {
            "metric": metric,
            "accuracy_final": curve[-1] if curve else None,
            "accuracy_last5": sum(curve[-5:]) / len(curve[-5:]) if curve else None,
            "accuracy_peak": (max if task.higher_is_better else min)(curve) if curve else None,
            "rounds": len(self.records),
            "bytes": table,
            "input_bytes": sum(len(share) for share in self.clients.shares) * getattr(source, "sample_bytes", 0),
            "seconds": {name: meter.seconds.get(name, 0.0) for name in PHASES},
            "seconds_total": self.seconds(),
            "simulated": {"seconds": meter.simulated, **self.recipe.simulated()} if meter.simulated is not None else None,
            "peak_memory_bytes": {side: meter.peak.get(side, 0) for side in ("client", "server")},
            "memory_figure": MEMORY_FIGURE,
            "kept_for_backward_bytes": None if meter.cuda else {side: meter.kept.get(side, 0) for side in ("client", "server")},
            "bytes_left_after_step": {side: meter.left.get(side, 0) for side in ("client", "server")},
            "held_byte_seconds": {side: meter.held_byte_seconds(side) for side in ("client", "server")},
            "macs_per_sample": macs(one, read_batch(source, torch.tensor([0]), None, 0, "macs")),
            "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in one.items()},
            "num_clients": len(self.clients),
            "samples": [len(share) for share in self.clients.shares],
            "left_out": [left_out(self.recipe, len(share)) for share in self.clients.shares],
            "class_counts": [[int(n) for n in row] for row in self.clients.counts],
            "seed": self.recipe.seed,
            "reproducible": self.reproducible,
            "release": self.release,
            "notes": switched_off(self.recipe),
            "recipe": self.recipe.flat(),
            "digest": self.recipe.digest(),
            **self.provenance,
        }


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
