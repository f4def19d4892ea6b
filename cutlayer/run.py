"""The story of a run: recipe -> data -> parts -> parties -> transport -> result."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checkpoint, models
from .building import num_steps
from .cut import Parts, Whole, cut, uncut
from .data import DATASETS, load as load_data
from .data.items import check_reproducible
from .data.partition import PARTITIONS, Partition, split
from .data.sources import Data
from .diagnose import watch
from .errors import BadInput
from .fit import fitted, single_samples
from .labels_cross import warn_if_inputs_cross
from .named import find, made
from .outputs import Outputs, Result
from .parties import build
from .program import program
from .recipes.recipe import Recipe, make, with_scheme
from .rounds import Paused, Progress, Rounds
from .run_folder import alone_in
from .saved_tensors import heard
from .streams import drawing
from .task import Task
from .transports import inprocess, simulated
from .transports.link import Replayed

__all__ = ["Paused", "Progress", "run", "run_recipe", "train"]


def run_recipe(recipe: Recipe, out: Path | None = None, **how: Any) -> Result:
    """Run a recipe from its names alone and return the result; see `train` for `how`."""
    if recipe.transport != "inprocess":
        where = "mpiexec -n 1+N cutlayer run ..." if recipe.transport == "mpi" else "cutlayer serve and cutlayer join"
        raise BadInput(f"transport = {recipe.transport!r} is for {where}; drop it")
    data = data_of(recipe).to(recipe.device)
    parts = parts_of(recipe, data)
    clients = split(data.train, recipe)
    return train(recipe, parts, clients, task_of(recipe), out, release=data.release, data=data, **how)


def run(parts: Parts, clients: Partition, *, task: Task | None = None, out: str | Path | None = None, **fields: Any) -> Result:
    """Train ready parts on clients' shares of data and return the result; `fields` are recipe fields.

    `clients` come from `cl.partition`; the data they were cut from say what the evaluation set is. The parts are left as
    they were: the trained ones are `result.parts`. Raises BadInput, and RunFailed if training breaks (a loss that is NaN).
    """
    for value, kind, remedy in (
        (parts, Parts, "cl.cut(model, at), or cl.Parts(bottom, top)"),
        (clients, Partition, "cl.partition.iid(data.train, num_clients), or another of cl.partition"),
        (task or Task(), Task, "cl.Task(loss, metrics)"),
    ):
        if not isinstance(value, kind):
            raise BadInput(f"a {type(value).__name__} was given where {kind.__name__} is wanted: {remedy}")
    named = dealt(clients, fields)
    own: dict[str, Any] = {
        # shares that the recipe names are left out, or seeds would be of other data
        "data": f"own:{fingerprint(clients if named is None else dataclasses.replace(clients, shares=()))}",
        "model": f"own:{fingerprint(parts)}",
        "cut": "none" if with_scheme(fields).get("cut") == "none" else "own",
    }
    own |= (
        (named or {"partition": "own"})
        | {"num_clients": len(clients)}
        | ({"tail": "own"} if parts.tail is not None and own["cut"] == "own" else {})
    )
    own |= {"task": f"own:{fingerprint(task)}"} if task else {}
    recipe = make(own | fields)
    if recipe.num_clients != len(clients):
        raise BadInput(
            f"num_clients = {recipe.num_clients}, and the partition has {len(clients)} clients; leave num_clients out"
        )
    if recipe.tail is not None and parts.tail is None:
        raise BadInput(f"tail = {recipe.tail!r}, and these parts have none; give cl.cut(model, at, tail)")
    parts = uncut(Whole(parts)) if recipe.cut == "none" else parts
    return train(recipe, parts, clients, task or Task(), Path(out) if out else None)


def dealt(clients: Partition, fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the recipe fields of a partition, if those and a run's `fields` deal these very shares."""
    if clients.source is None or clients.name not in PARTITIONS:
        return None
    named = {"partition": clients.name, **{name: value for name, value in clients.fields.items() if name != "seed"}}
    said = {name: fields[name] for name in (*named, "seed") if name in fields}
    try:
        again = split(clients.source, make({"num_clients": len(clients)} | named | said)).shares
    except BadInput:
        return None
    same = len(again) == len(clients) and all(torch.equal(a, b.to(a)) for a, b in zip(again, clients.shares, strict=True))
    return named if same else None


def fingerprint(given: Parts | Partition | Task) -> str:
    """Return 8 hex digits of what was given as objects: modules with names and shapes, shares with their labels, names of functions.

    Initial weights and inputs do not count, so a program that does not seed its network still finds its run again.
    """
    digest = hashlib.sha256()
    if isinstance(given, Parts):
        for part in (given.bottom, given.top, given.tail):
            digest.update(repr(part).encode())
            for name, tensor in part.state_dict().items() if part is not None else ():
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    elif isinstance(given, Task):
        for function in (given.loss, *given.metrics.values()):
            digest.update(f"{getattr(function, '__qualname__', type(function).__qualname__)}|".encode())
    elif given.source is not None:
        digest.update(repr(given.source.input_shape).encode())
        for tensor in (given.source.labels, *given.shares):
            digest.update(tensor.cpu().contiguous().numpy().tobytes() + b"|")
    return digest.hexdigest()[:8]


def train(
    recipe: Recipe,
    parts: Parts,
    clients: Partition,
    task: Task,
    out: Path | None = None,
    *,
    release: str = "",
    data: Data | None = None,
    progress: Progress | None = None,
    deadline: float | None = None,
    replay: Sequence[int] | None = None,
) -> Result:
    """Train to the end and return the result; with `out`, everything is written there, and what is there is not done again:
    a run that stopped goes on, and one that is finished is returned.

    `data` is the data set that the clients' shares are of, if it is known: its description is kept, and compared when a run goes on.
    `replay` is the order in which the server handles messages, by client, as a run under the clock wrote it to order.json.
    `deadline` is a time.monotonic() after which the run stops at its next mark and raises Paused.
    """
    if clients.source is None:
        raise BadInput("these clients have no data; make them from a data set: cl.partition.iid(data.train, ...)")
    if len(clients) != recipe.num_clients:
        raise BadInput(
            f"num_clients = {recipe.num_clients}, and partition {recipe.partition!r} gave {len(clients)}; they must be the same"
        )
    if deadline is not None and recipe.schedule == "asynchronous" and not recipe.checkpoint_every:
        raise BadInput(
            "max_minutes: a run stops at marks, and an asynchronous one has none but every checkpoint_every steps; set that"
        )
    source = clients.source
    for k, share in enumerate(clients.shares):
        if not len(share) or int(share.min()) < 0 or int(share.max()) >= len(source):
            raise BadInput(
                f"the share of client {k} is empty or leaves the {len(source)} samples; every client needs some of them"
            )
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.num_threads)
    try:
        with heard(), alone_in(out), single_samples():
            outputs = Outputs(recipe, out, clients, release, data)
            rounds = Rounds(recipe, source, outputs, num_steps(recipe, clients.shares), progress, deadline)
            parties = build(recipe, parts, clients, source, fitted(task, recipe, parts, source), rounds.tick)
            warn_if_inputs_cross(recipe, parts, source)
            rounds.follow(parties)
            if out is not None and (out / "summary.json").exists():
                return outputs.finished(parties)
            outputs.reproducible = check_reproducible(source, recipe.seed)
            if out is not None and (found := checkpoint.marks(out / "marks")):
                if replay is not None:
                    raise BadInput(
                        f"{out} holds marks, and a run that replays an order goes on from none; delete it, or choose another out"
                    )
                rounds.resume(checkpoint.load(found[-1], recipe.device))
            programs = {
                client.id: program(client, watch(recipe, method, parties.server), its_batches, recipe.checkpoint_every)
                for client, method, its_batches in zip(parties.clients, parties.methods, parties.batches, strict=True)
            }
            if parties.clock and replay is None:
                simulated.run(programs, parties.server, parties.ends, parties.meter, clock=parties.clock, tap=outputs.tap())
            else:
                server = parties.server if replay is None else Replayed(parties.server, replay)
                inprocess.run(programs, server, parties.ends, parties.meter, tap=outputs.tap(), overlap=recipe.overlap)
            return outputs.finish(parties)
    finally:
        torch.set_num_threads(threads)


def data_of(recipe: Recipe) -> Data:
    """Return the data set that a recipe names."""
    _not_own("data", recipe.data)
    if recipe.data in DATASETS:
        return load_data(recipe.data, recipe.data_dir, recipe.num_train, recipe.num_test, recipe.augment, recipe.num_held_out)
    found = find("data", recipe.data, DATASETS)
    return made("data", recipe.data, found if callable(found) else lambda: found, Data)


def parts_of(recipe: Recipe, data: Data) -> Parts:
    """Return the parts of the network that a recipe names: the uncut model is built once under its seed, then cut."""
    _not_own("model", recipe.model)
    vocabulary = getattr(data.train, "vocabulary", 0)
    with drawing(recipe.seed, "model"):
        if recipe.model in models.MODELS:
            model: nn.Module | Parts = models.build_model(recipe.model, data.num_classes, data.train.input_shape, vocabulary)
        else:
            model = find("model", recipe.model, models.MODELS)
            if not isinstance(model, nn.Module | Parts):
                shapes: dict[str, Any] = {"num_classes": data.num_classes, "input_shape": data.train.input_shape}
                shapes |= {"vocabulary": vocabulary} if vocabulary else {}
                model = made("model", recipe.model, model, nn.Module | Parts, **shapes)
    if isinstance(model, Parts):
        return model
    return uncut(model) if recipe.cut == "none" else cut(model, recipe.cut, recipe.tail)


def _not_own(field: str, name: str) -> None:
    if name.partition(":")[0] == "own":
        raise BadInput(f"{field} = {name!r} was given to cl.run as an object; run it from there, or name package.module:object")


def task_of(recipe: Recipe) -> Task:
    """Return the task that a recipe names."""
    _not_own("task", recipe.task)
    found = find("task", recipe.task, {"classification": Task})
    return made("task", recipe.task, found if callable(found) else lambda: found, Task)
