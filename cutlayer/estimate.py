"""What a run would cost, before it is run: bytes, memory, parameters, from a few steps on real batches."""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from .client import program
from .data.partition import split
from .outputs import macs
from .parties import build, fitted, order
from .recipes.recipe import Recipe
from .run import data_of, parts_of, task_of
from .transports import inprocess


@dataclass(frozen=True)
class Estimate:
    """Payload bytes of the whole run by direction and role, peak bytes by side, parameters and multiply-adds by part."""

    payload: dict[str, dict[str, int]]
    peak_memory_bytes: dict[str, int]
    parameters: dict[str, int]
    macs_per_sample: dict[str, int]
    steps: int


def estimate(recipe: Recipe) -> Estimate:
    """Run as many steps of each batch size as the method's periods ask for, and multiply by their number in the run."""
    import dataclasses

    data = data_of(recipe).to(recipe.device)
    clients = split(data.train, recipe)
    parts = parts_of(recipe, data)
    sizes = Counter(len(batch) for k, share in enumerate(clients.shares) for batch in order(recipe, len(share), k, 0))
    period = math.lcm(*(value for name, value in recipe.options.items() if name.endswith("_every")), 1)
    probe = dataclasses.replace(recipe, rounds=1, num_clients=1, warmup_rounds=0, evaluate_every=1)
    task = fitted(task_of(recipe), recipe, parts, data.train)
    payload: dict[str, dict[str, float]] = {"up": {}, "down": {}}
    peak: dict[str, int] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.num_threads)
    try:
        for size, count in sizes.items():
            share = clients.shares[0][: size * (period + 1)].repeat(math.ceil(size * (period + 1) / len(clients.shares[0])))
            one = dataclasses.replace(clients, shares=(share[: size * (period + 1)],))
            parties = build(dataclasses.replace(probe, batch_size=size), parts, one, data.train, task, lambda: None)
            client = parties.clients[0]
            its = parties.batches[0]
            steps = program(client, parties.methods[0], lambda r, s, its=its: islice(its(r, s), period), 0)  # type: ignore[misc]
            client.sample_step = 0
            inprocess.run({0: steps}, parties.server, parties.ends, parties.meter)
            for (direction, role, _), nbytes in parties.meter.payload.items():
                if role != "evaluation":
                    payload[direction][role] = payload[direction].get(role, 0) + nbytes * count * recipe.rounds / period
            peak = {side: max(peak.get(side, 0), parties.meter.peak[side]) for side in ("client", "server")}
        modules = parties.modules()
        counts = macs(modules, task.input_shape, parties)
    finally:
        torch.set_num_threads(threads)
    _hand_over(recipe, payload, sum(t.nbytes for t in parties.clients[0].weights().values()))
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    exact: dict[str, Any] = {d: {role: round(n) for role, n in roles.items()} for d, roles in payload.items()}
    return Estimate(exact, peak, parameters, counts, recipe.rounds * sum(sizes.values()))


def _hand_over(recipe: Recipe, payload: dict[str, dict[str, float]], nbytes: int) -> None:
    if recipe.num_clients > 1 and recipe.hand_over != "shared":
        turns = recipe.rounds * recipe.num_clients
        payload["up"]["weights"] = turns * nbytes
        payload["down"]["weights"] = (turns - 1) * nbytes
