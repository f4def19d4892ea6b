"""All of a run's parties, as one process holds them: clients with their methods and batches, and their server."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .building import Builder
from .client import Batches, Client
from .clock import Clock
from .costs import known_macs
from .cut import Parts
from .data.items import read_batch
from .data.partition import Partition
from .data.sources import Source
from .meter import Meter
from .program import Method
from .recipes.recipe import Recipe
from .server import Server
from .task import Task
from .transports.link import Ends


@dataclass
class Parties:
    """All of a run's parties, as one process holds them."""

    clients: list[Client]
    methods: list[Method]
    batches: list[Batches]
    server: Server
    ends: Ends
    meter: Meter
    clock: Clock | None = None
    template: Client | None = None  # where the clients are elsewhere: one of them as it was built, for evaluation
    labels: dict[int, int] = field(default_factory=dict)  # the state that each client elsewhere has kept for itself

    @property
    def one(self) -> Client:
        """Any of the clients, for what all have in common."""
        found = self.clients[0] if self.clients else self.template
        assert found is not None
        return found

    def models(self) -> list[dict[str, nn.Module]]:
        """Return the modules that a prediction needs, as the server can rebuild them; one set, or one for each client."""
        return [self._rebuilt(*model) for model in self.server.models()]

    def _rebuilt(self, k: int, weights: dict[str, Tensor], top: nn.Module) -> dict[str, nn.Module]:
        client = self.clients[k] if self.clients else self.one
        modules = {name: module for name, module in client.modules.items() if name in client.travels}
        if weights:
            modules = {name: copy.deepcopy(module) for name, module in modules.items()}
            for name, module in modules.items():
                mine = {key.partition(".")[2]: t for key, t in weights.items() if key.partition(".")[0] == name}
                module.load_state_dict(mine)
        return {**modules, "top": top}

    def parts(self) -> dict[str, nn.Module]:
        """Return one client's modules, those too that are its own affair, and the top."""
        client = self.one
        own = {n: m for n, m in client.modules.items() if n in client.travels or next(m.parameters(), None) is not None}
        return {**own, "top": self.server.top}

    def modules(self, apart: Sequence[int] = ()) -> dict[str, nn.Module]:
        """Return the trained modules by name, as bottom-<k> where clients differ and top-<k> where their copies do.

        `apart`: the clients that differed in a run that is over, whose weights these modules are to be given.
        """
        models = self.models()
        if apart:
            models = [copy.deepcopy(models[0]) for _ in apart]
        elif len(models) == 1:
            return models[0]
        clients = apart or [k for k, _, _ in self.server.models()]
        named = {f"{name}-{k}": module for k, model in zip(clients, models, strict=True) for name, module in model.items()}
        if not self.server.copies:
            named = {name: module for name, module in named.items() if not name.startswith("top-")} | {"top": self.server.top}
        return named

    def state(self) -> dict[str, Any]:
        both = zip(self.clients, self.methods, strict=True)
        return {
            "clients": [{"client": client.state(), "method": method.state()} for client, method in both],
            "server": self.server.state(),
            "meter": self.meter.state(),
            "labels": list(self.labels.items()),
            "clock": self.clock.state() if self.clock else {},
            "codecs": [[{role: codec.state() for role, codec in end.items()} for end in pair] for pair in self.ends],
        }

    def load(self, state: dict[str, Any]) -> None:
        for client, method, saved in zip(self.clients, self.methods, state["clients"], strict=True):
            client.load(saved["client"])
            method.load(saved["method"])
        self.server.load(state["server"])
        self.labels = dict(state["labels"])
        self.meter.load(state["meter"])
        if self.clock:
            self.clock.load(state["clock"])
        for pair, saved_pair in zip(self.ends, state["codecs"], strict=True):
            for end, saved_end in zip(pair, saved_pair, strict=True):
                for role, codec in end.items():
                    codec.load(saved_end[role])


def build(recipe: Recipe, parts: Parts, clients: Partition, source: Source, task: Task, tick: Callable[[], None]) -> Parties:
    """Build the parties from copies of the parts; the parts themselves are left as they are."""
    meter = Meter(recipe.device)
    builder = Builder(recipe, parts, source, task, meter, tick)
    owners = [builder.owner(0, clients.shares[0])]
    owners += [builder.owner(k, share, owners[0].client) for k, share in enumerate(clients.shares[1:], 1)]
    ends = [(builder.codecs(k, "client"), builder.codecs(k, "server")) for k in range(len(owners))]
    server = builder.server(len(owners), owners[0].client, {k: end for k, (_, end) in enumerate(ends)})
    clock = Clock(meter, **recipe.simulated()) if recipe.simulated() else None
    for owner, (mine, _) in zip(owners, ends, strict=True):
        owner.client.codecs = mine
    built, methods, its_batches = (list(column) for column in zip(*owners, strict=True))
    parties = Parties(built, methods, its_batches, server, ends, meter, clock)
    if clock:
        meter.cost = known_macs(parties.parts(), read_batch(source, torch.tensor([0]), None, 0, "macs"))
    return parties
