"""What a run leaves behind: records as they come, marks, the summary, weights, and events for TensorBoard."""

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from . import checkpoint
from .building import left_out
from .costs import macs
from .cut import Parts
from .data.description import describe
from .data.items import read_batch
from .data.partition import Partition, save as save_partition
from .data.sources import Data
from .descriptors import wait_for_descriptors
from .errors import BadInput
from .integrity import check_weights
from .meter import PHASES, Direction, Meter
from .parties import Parties
from .private import make_folder, write
from .provenance import provenance
from .recipes.legal import switched_off
from .recipes.recipe import Recipe
from .recipes.toml import to_toml
from .run_folder import check_data, check_folder, save_weights, set_aside
from .runs import MEMORY_FIGURE
from .trained_data import keep_description
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

    def __init__(
        self, recipe: Recipe, out: Path | None, clients: Partition, release: str, data: Data | None = None
    ) -> None:  # fmt: skip
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
            if data is not None:
                keep_description(out, describe(data))
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
            sorted(
                int(k) for path in folder.glob("bottom-*.safetensors") if (k := path.stem.removeprefix("bottom-")).isdecimal()
            )
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
