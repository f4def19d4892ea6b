"""What a run would cost, before it is run: bytes, memory, parameters, from a few steps on real batches."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from itertools import cycle, islice, repeat
from typing import Any

import torch
from torch import Tensor

from .building import order
from .client import Client, Record
from .costs import macs
from .cut import Parts
from .data.partition import Partition, split
from .data.sources import Source
from .fit import fitted, single_samples
from .meter import Direction
from .parties import Parties, build
from .program import program
from .recipes.recipe import Recipe, method_class, names_of
from .run import data_of, parts_of, task_of
from .slots import load_slots, slots
from .task import Batch, Task
from .transports import inprocess
from .wire import Exchange, Packed

Payload = Counter[tuple[Direction, str]]
Phase = Callable[[int, int, int], Hashable]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Payload bytes of the whole run by direction and role, peak bytes by side, parameters and multiply-adds by part.

    What a method keeps from step to step (fsl_sage and loss_threshold at the server, synthetic_gradient at the client) is not in the
    peaks. `inexact` says why bytes are an estimate, where they are: rows are nodes, and graphs differ in size; or clients that differ
    merge as they come, and who comes how often is decided by how long they take.
    """

    payload: dict[str, dict[str, int]]
    peak_memory_bytes: dict[str, int]
    parameters: dict[str, int]
    macs_per_sample: dict[str, int]
    steps: int
    inexact: str = ""


@single_samples()
def estimate(recipe: Recipe) -> Estimate:
    """Take as many steps of each batch size as the method's periods ask for and count them as often as the run takes them.

    What crosses between turns is counted by running the whole protocol with batches that are nothing.
    """
    data = data_of(recipe).to(recipe.device)
    clients = split(data.train, recipe)
    parts = parts_of(recipe, data)
    task = fitted(task_of(recipe), recipe, parts, data.train)
    turns = [[len(batch) for batch in order(recipe, len(share), k, 0)] for k, share in enumerate(clients.shares)]
    phase, period, several = _phases(recipe)
    peak: dict[str, int] = {}
    costs: dict[int, dict[Hashable, Payload]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.num_threads)
    try:
        taken = max(period, recipe.options.get("delay", 0) + 1) + 1  # by then a regressor has had its first lesson, too
        for size in {size for sizes in turns for size in sizes}:
            costs[size] = {}
            for seen in (1, 0) if several else (0,):  # also a step that is the first of a round and not of a period
                probe, found = _steps(recipe, parts, clients, data.train, task, size, phase, taken, seen)
                costs[size] |= found
            peak = {side: max(peak.get(side, 0), probe.meter.peak[side]) for side in ("client", "server")}
        how_often = recipe.schedule_options()
        if getattr(how_often, "server_copies", False):
            peak["server"] += (len(clients) - 1) * probe.server.owned()
        if getattr(how_often, "server_order", "") == "concatenated":
            together = sum(sizes[0] for sizes in turns)
            joint, _ = _steps(recipe, parts, clients, data.train, task, together, phase, 2, 0)
            peak["server"] = max(peak["server"], joint.meter.peak["server"])
        modules = probe.parts()
        counts = macs(modules, data.train.batch(torch.tensor([0]), None))
        total, steps = _protocol(recipe, parts, clients, data.train, task, slots(probe.clients[0]), turns, phase)
        for (size, at), count in steps.items():
            for key, nbytes in costs[size][at].items():
                total[key] += nbytes * count
    finally:
        torch.set_num_threads(threads)
    payload: dict[str, dict[str, int]] = {"up": {}, "down": {}}
    for (direction, role), nbytes in total.items():
        payload[direction][role] = nbytes
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    return Estimate(payload, peak, parameters, counts, sum(steps.values()), _inexact(recipe, task, turns))


def _inexact(recipe: Recipe, task: Task, turns: list[list[int]]) -> str:
    if task.ragged:
        return "graphs differ in size, and these were counted on a few batches"
    if recipe.schedule == "asynchronous" and (recipe.simulated() or any(sizes != turns[0] for sizes in turns)):
        return "clients merge as they come, and who is faster takes more turns; these were counted with as many turns for each"
    if any(part.startswith("minifloat@") for codec in recipe.codec.values() for part in codec.split("+")):
        return "minifloat of given sizes has no sign bit where nothing is negative, and nobody knows yet where that is"
    return ""


def _steps(
    recipe: Recipe,
    parts: Parts,
    clients: Partition,
    source: Source,
    task: Task,
    size: int,
    phase: Phase,
    num_steps: int,
    seen: int,
) -> tuple[Parties, dict[Hashable, Payload]]:
    """Run one client, that has `seen` so many, for some steps of one batch size; return the parties and a step's bytes by phase."""
    share = torch.tensor(list(islice(cycle(clients.shares[0].tolist()), size * num_steps)))
    one = dataclasses.replace(clients, shares=(share,))
    options = {k: v for k, v in recipe.options.items() if k not in names_of(type(recipe.schedule_options()))}
    alone = dataclasses.replace(
        recipe, rounds=1, num_clients=1, warmup_rounds=0, batch_size=size, local_epochs=1, schedule="relay", options=options
    )
    parties = build(alone, parts, one, source, task, lambda: None)
    if seen:
        parties.methods[0].load({"seen": seen})
    client = parties.clients[0]
    by_step: list[Payload] = [Counter() for _ in range(num_steps)]

    def tap(direction: Direction, packed: Packed) -> None:
        if packed.message.kind not in ("sync", "go"):
            for role, nbytes in packed.payload().items():
                by_step[client.step][direction, role] += nbytes

    inprocess.run(
        {0: program(client, parties.methods[0], parties.batches[0])}, parties.server, parties.ends, parties.meter, tap=tap
    )
    return parties, {phase(0, t, t + seen): cost for t, cost in enumerate(by_step)}


def _phases(recipe: Recipe) -> tuple[Phase, int, bool]:
    """Return what decides which messages a step sends, from its round, its number in it and in the run.

    And after how many steps all came, and whether periods of a round and of the run meet, so that they come in other pairs too.
    """
    every = [n for name, n in recipe.options.items() if name.endswith("_every") and isinstance(n, int)]
    period = math.lcm(*every, 1)
    of_method = getattr(method_class(recipe.method), "phase", None)
    if of_method is not None:
        both = {"lambda_every", "send_every"} <= recipe.options.keys() and min(every) > 1
        return partial(of_method, recipe.method_options()), period, both
    return lambda round, step, seen: seen % period, period, False


class Counting:
    """A method that computes and sends nothing, and counts its steps by batch size and phase."""

    def __init__(self, sizes: list[int], phase: Phase, steps: Counter[tuple[int, Hashable]]) -> None:
        self.sizes, self.phase, self.steps, self.seen = sizes, phase, steps, 0

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        yield from ()
        self.steps[self.sizes[client.step], self.phase(client.round, client.step, self.seen)] += 1
        self.seen += 1
        return {}

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Any) -> None:
        pass


def _protocol(
    recipe: Recipe,
    parts: Parts,
    clients: Partition,
    source: Source,
    task: Task,
    state: dict[str, Tensor],
    turns: list[list[int]],
    phase: Phase,
) -> tuple[Payload, Counter[tuple[int, Hashable]]]:
    """Return the bytes of all hand-overs and evaluations, and the steps taken by (batch size, phase).

    `state` is what an optimizer holds once it has stepped.
    """
    parties = build(recipe, parts, clients, source, task, lambda: None)
    parties.server.part = None  # no losses, no decisions: what is counted is that everything is sent
    none, steps = Batch(torch.empty(0), torch.empty(0)), Counter[tuple[int, Hashable]]()
    programs = {}
    for client, sizes, its in zip(parties.clients, turns, parties.batches, strict=True):
        load_slots(client, state)
        nothing = its._replace(iterate=lambda round, first, num=its.per_round: repeat(none, num - first))  # type: ignore[misc]
        programs[client.id] = program(client, Counting(sizes, phase, steps), nothing)
    inprocess.run(programs, parties.server, parties.ends, parties.meter)
    payload: Payload = Counter()
    for (direction, role, _), nbytes in parties.meter.payload.items():
        payload[direction, role] += nbytes  # type: ignore[index]
    return payload, steps
