"""The story of a run: recipe -> data -> parts -> parties -> transport -> result."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint, models
from .client import program
from .cut import Parts, cut
from .data import DATASETS, load as load_data
from .data.partition import Partition, split
from .data.sources import Data, Source
from .diagnose import watch
from .errors import BadInput, RunFailed
from .evaluate import recomposed
from .named import find
from .outputs import Outputs, Result
from .parties import Parties, build, fitted, num_steps, placement, seeded
from .recipes.recipe import Recipe, make
from .task import Task
from .transports import inprocess

Progress = Callable[[int, int, dict[str, Any] | None], None]  # steps done, steps in all, the record of a finished round


class Paused(Exception):
    """The run stopped at a mark because its time is over; it goes on where it stopped when it is started again."""


def run_recipe(recipe: Recipe, out: Path | None = None, **how: Any) -> Result:
    """Run a recipe from its names alone and return the result; see `train` for `how`."""
    data = data_of(recipe).to(recipe.device)
    parts = parts_of(recipe, data)
    clients = split(data.train, recipe)
    return train(recipe, parts, clients, task_of(recipe), out, release=data.release, **how)


def run(parts: Parts, clients: Partition, *, task: Task | None = None, out: str | Path | None = None, **fields: Any) -> Result:
    """Train ready parts on clients' shares of data and return the result; `fields` are recipe fields.

    `clients` come from `cl.partition`; the data they were cut from say what the evaluation set is. The parts are left as
    they were: the trained ones are `result.parts`. Raises BadInput, and RunFailed if training breaks (a loss that is NaN).
    """
    named = {"data": "own", "model": "own", "cut": "own", "partition": clients.name, "num_clients": len(clients)}
    recipe = make(named | fields)
    return train(recipe, parts, clients, task or Task(), Path(out) if out else None)


def train(
    recipe: Recipe,
    parts: Parts,
    clients: Partition,
    task: Task,
    out: Path | None = None,
    *,
    release: str = "",
    progress: Progress | None = None,
    deadline: float | None = None,
) -> Result:
    """Train to the end and return the result; with `out`, everything is written there and a run that stopped goes on.

    `deadline` is a time.monotonic() after which the run stops at its next mark and raises Paused.
    """
    if clients.source is None:
        raise BadInput("these clients have no data; make them from a data set: cl.partition.iid(data.train, ...)")
    source: Source = clients.source
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.num_threads)
    outputs = Outputs(recipe, out, clients, release)
    done, total = 0, num_steps(recipe, clients.shares)

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, None)

    try:
        parties = build(recipe, parts, clients, source, fitted(task, recipe, parts, source), tick)
        if out is not None and (found := checkpoint.marks(out / "marks")):
            done = _resume(parties, outputs, checkpoint.load(found[-1], recipe.device))
        _hooks(recipe, parties, outputs, source, progress, lambda: (done, total), deadline)
        programs = {
            client.id: program(client, watch(recipe, method, parties.server), its_batches, recipe.checkpoint_every)
            for client, method, its_batches in zip(parties.clients, parties.methods, parties.batches, strict=True)
        }
        inprocess.run(programs, parties.server, parties.ends, parties.meter, tap=outputs.tap())
        return outputs.finish(parties)
    finally:
        torch.set_num_threads(threads)


def _hooks(
    recipe: Recipe,
    parties: Parties,
    outputs: Outputs,
    source: Source,
    progress: Progress | None,
    steps: Callable[[], tuple[int, int]],
    deadline: float | None,
) -> None:
    server, how = parties.server, parties.server.training

    def on_round(_: object) -> None:
        record: dict[str, Any] = {"round": server.schedule.round, "train_loss": server.record().get("loss")}
        names = {name for client in server.records.values() for name in client}
        for name in sorted(names):
            values = [client[name] for client in server.records.values() if name in client]
            record[name if name != "loss" else "train_loss"] = sum(values) / len(values)
        for name, value in record.items():
            if isinstance(value, float) and not value - value == 0:
                raise RunFailed(
                    f"{name} is {value} in round {server.schedule.round}; lower lr (now {recipe.lr}), or set clip; earlier rounds are kept"
                )
        if server.schedule.evaluated(server.schedule.round) and source.held_out is not None:
            modules = parties.modules()
            record |= recomposed(modules, source.held_out, parties.clients[0].task, how.autocast, placement(recipe))
        outputs.round(record, parties.meter)
        if progress:
            progress(*steps(), record)

    def on_mark(_: object) -> None:
        outputs.mark(parties, steps()[0])
        if deadline is not None and time.monotonic() > deadline and server.schedule.round < recipe.rounds:
            raise Paused

    server.on_round, server.on_mark = on_round, on_mark


def _resume(parties: Parties, outputs: Outputs, state: dict[str, Any]) -> int:
    parties.load(state["parties"])
    outputs.load(state["outputs"])
    return int(state["done"])


def data_of(recipe: Recipe) -> Data:
    """Return the data set that a recipe names, on its device."""
    row = find("data set", recipe.data, DATASETS)
    if recipe.data not in DATASETS:
        data = row() if callable(row) else row
        if not isinstance(data, Data):
            raise BadInput(
                f"data {recipe.data!r} gives a {type(data).__name__}; it must give cl.data.Data (cl.data.from_datasets)"
            )
        return data
    return load_data(recipe.data, recipe.data_dir, recipe.num_train, recipe.num_test, recipe.augment)


def parts_of(recipe: Recipe, data: Data) -> Parts:
    """Return the parts of the network that a recipe names: the uncut model is built once under its seed, then cut."""
    with seeded(recipe.seed, "model"):
        if recipe.model in models.MODELS:
            made: nn.Module | Parts = models.build_model(recipe.model, data.num_classes, data.train.input_shape)
        else:
            made = find("model", recipe.model, models.MODELS)
            if not isinstance(made, nn.Module | Parts):
                made = made(num_classes=data.num_classes, input_shape=data.train.input_shape)
    return made if isinstance(made, Parts) else cut(made, recipe.cut, recipe.tail)


def task_of(recipe: Recipe) -> Task:
    """Return the task that a recipe names."""
    if recipe.task == "classification":
        return Task()
    found = find("task", recipe.task, {})
    task = found if isinstance(found, Task) else found()
    return replace(task)
