"""From a recipe, parts and shares of data to the parties: clients with their methods and batches, and their server."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import codecs
from .client import Batches, Client
from .clock import Clock
from .costs import macs
from .cut import Parts
from .data.partition import Partition
from .data.sources import Source
from .errors import BadInput
from .fit import drawing_part, overwrites, two
from .meter import Meter
from .program import Method
from .recipes.recipe import Recipe, method_class, schedule_class
from .schedules import Plan
from .schedules.parallel import period
from .server import Server
from .streams import stream
from .task import Batch, Task
from .training import Training
from .transports.link import Ends


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draw initial weights from a stream of their own and leave the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, purpose).initial_seed())
        yield


def lr_factor(recipe: Recipe) -> Callable[[int], float]:
    """Return the factor of the learning rate by round: linear warm-up, then constant, cosine to zero, or steps."""

    def factor(round: int) -> float:
        if round < recipe.warmup_rounds:
            return (round + 1) / recipe.warmup_rounds
        done = (round - recipe.warmup_rounds) / max(1, recipe.rounds - recipe.warmup_rounds)
        if recipe.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if recipe.lr_schedule == "steps":
            return float(0.2 ** sum(round >= at * recipe.rounds for at in (0.3, 0.6, 0.8)))
        return 1.0

    return factor


def training(recipe: Recipe) -> Training:
    """Return how either side takes a step under a recipe."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if recipe.optimizer == "adam":
            return torch.optim.Adam(groups, lr=recipe.lr, weight_decay=recipe.weight_decay)
        return torch.optim.SGD(
            groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )

    device = torch.device(recipe.device).type
    bf16 = recipe.precision == "bfloat16"
    autocast = partial(torch.autocast, device, dtype=torch.bfloat16) if bf16 else nullcontext
    return Training(make, lr_factor(recipe), recipe.clip, recipe.fedprox, recipe.seed, not recipe.overlap, autocast)


def placement(recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """Return what lays out a batch of inputs as the recipe's memory format says."""
    if recipe.memory_format == "contiguous":
        return lambda x: x
    return lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def place_module(recipe: Recipe, module: nn.Module) -> nn.Module:
    """Move a module to the recipe's device and memory format."""
    if recipe.memory_format == "channels_last":
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.to(recipe.device)


def order(recipe: Recipe, n: int, client: int, round: int) -> list[Tensor]:
    """Return the positions (B,) of each batch of one client in one round: a fresh permutation for each local epoch.

    A last batch of a single sample is left out, because BatchNorm cannot train on it.
    """
    batches = []
    for epoch in range(recipe.local_epochs):
        generator = stream(recipe.seed, "order", client, round * recipe.local_epochs + epoch)
        split = list(torch.randperm(n, generator=generator).split(recipe.batch_size))
        if (
            len(split) > 1
            and recipe.batch_size > 1
            and (len(split[-1]) == 1 or (recipe.drop_last and len(split[-1]) < recipe.batch_size))
        ):
            split.pop()
        batches += split
    return batches


def batches(recipe: Recipe, source: Source, share: Tensor, client: int, tick: Callable[[], None] = lambda: None) -> Batches:
    """Return a client's batches; order and augmentation are streams of the recipe's seed."""
    place = placement(recipe)

    def iterate(round: int, first: int) -> Iterator[Batch]:
        for step, positions in enumerate(order(recipe, len(share), client, round)[first:], first):
            batch = source.batch(share[positions], stream(recipe.seed, "augment", client, round, step))
            tick()
            yield batch._replace(x=place(batch.x))

    num = len(order(recipe, len(share), client, 0))
    return Batches(iterate, num, num // recipe.local_epochs)


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

    def models(self) -> list[dict[str, nn.Module]]:
        """Return the modules that a prediction needs, as the server can rebuild them; one set, or one for each client."""
        return [self._rebuilt(*model) for model in self.server.models()]

    def _rebuilt(self, k: int, weights: dict[str, Tensor], top: nn.Module) -> dict[str, nn.Module]:
        client = self.clients[k]
        modules = {name: module for name, module in client.modules.items() if name in client.travels}
        if weights:
            modules = {name: copy.deepcopy(module) for name, module in modules.items()}
            for name, module in modules.items():
                mine = {key.partition(".")[2]: t for key, t in weights.items() if key.partition(".")[0] == name}
                module.load_state_dict(mine)
        return {**modules, "top": top}

    def parts(self) -> dict[str, nn.Module]:
        """Return one client's modules, those too that are its own affair, and the top."""
        client = self.clients[0]
        own = {n: m for n, m in client.modules.items() if n in client.travels or next(m.parameters(), None) is not None}
        return {**own, "top": self.server.top}

    def modules(self) -> dict[str, nn.Module]:
        """Return the trained modules by name, as bottom-<k> where clients differ and top-<k> where their copies do."""
        models = self.models()
        if len(models) == 1:
            return models[0]
        clients = [k for k, _, _ in self.server.models()]
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
            "clock": self.clock.state() if self.clock else {},
            "codecs": [[{role: codec.state() for role, codec in end.items()} for end in pair] for pair in self.ends],
        }

    def load(self, state: dict[str, Any]) -> None:
        for client, method, saved in zip(self.clients, self.methods, state["clients"], strict=True):
            client.load(saved["client"])
            method.load(saved["method"])
        self.server.load(state["server"])
        self.meter.load(state["meter"])
        if self.clock:
            self.clock.load(state["clock"])
        for pair, saved_pair in zip(self.ends, state["codecs"], strict=True):
            for end, saved_end in zip(pair, saved_pair, strict=True):
                for role, codec in end.items():
                    codec.load(saved_end[role])


def build(recipe: Recipe, parts: Parts, clients: Partition, source: Source, task: Task, tick: Callable[[], None]) -> Parties:
    """Build the parties from copies of the parts; the parts themselves are left as they are."""
    parts = copy.deepcopy(parts)
    meter = Meter(recipe.device)
    how = training(recipe)
    kind, options, how_often = method_class(recipe.method), recipe.method_options(), recipe.schedule_options()
    shared = getattr(how_often, "hand_over", "local") == "shared"
    its_batches = [batches(recipe, source, share, k, tick) for k, share in enumerate(clients.shares)]
    built: list[Client] = []
    methods: list[Method] = []
    for k, share in enumerate(clients.shares):
        own = {"bottom": parts.bottom} | ({"tail": parts.tail} if parts.tail is not None else {})
        if built and shared:
            own = dict(built[0].modules.items())
        elif built:
            own = copy.deepcopy(own)
        sizes = [len(batch) for batch in order(recipe, len(share), k, 0)]
        sample = int(sizes[:2] == sizes[:1] * 2)  # the second batch, if it is whole: its optimizer has state
        with seeded(recipe.seed, "auxiliary"):
            client = Client(
                k, {n: place_module(recipe, m) for n, m in own.items()}, how, task, meter=meter, weight=len(share),
                hand_over=getattr(how_often, "hand_over", "local"), sample_step=sample,
                keeps_norm=getattr(how_often, "batch_norm", "") == "local", turn=turn_of(how_often, its_batches[k]),
                optimizer=built[0].optimizer if built and shared else None,
            )  # fmt: skip
            methods.append(kind(options, client))
        for module in client.modules.values():
            place_module(recipe, module)
        built.append(client)
    plan = Plan(len(clients), recipe.rounds, recipe.evaluate_every, recipe.seed)
    ends = [
        (
            codecs.build(recipe.codec, recipe.seed, client.id, "client"),
            codecs.build(recipe.codec, recipe.seed, client.id, "server"),
        )
        for client in built
    ]
    for client in built:
        client.reducer = codecs.reducer(recipe.codec, recipe.seed, client.id)
    make_part = getattr(kind, "server_part", None)
    server = Server(
        place_module(recipe, parts.top), schedule_class(recipe.schedule)(how_often, plan), how, task, meter=meter,
        part=make_part(options) if make_part else None, codecs={k: end for k, (_, end) in enumerate(ends)},
        copy_input=overwrites(parts, source.batch(two(source), None)),
    )  # fmt: skip
    if getattr(server.schedule, "needs_start", False):
        server.weights = {name: tensor.clone() for name, tensor in built[0].weights().items()}
    if recipe.overlap and (part := drawing_part({**built[0].modules, "top": server.top}, source.batch(two(source), None))):
        raise BadInput(
            f"overlap: the {part} draws random numbers (dropout), and both threads would draw from one generator; drop one"
        )
    clock = Clock(meter, **recipe.simulated()) if recipe.simulated() else None
    parties = Parties(built, methods, its_batches, server, ends, meter, clock)
    if clock:
        meter.cost = macs(parties.parts(), source.batch(torch.tensor([0]), None))
    return parties


def turn_of(options: Any, batches: Batches) -> int:
    """Return after how many steps a client has to sync; 0: after a round."""
    number, unit = period(getattr(options, "sync_every", "never"))
    return number * {"batch": 1, "epoch": batches.per_epoch, "round": 0}[unit]


def num_steps(recipe: Recipe, clients: Sequence[Tensor]) -> int:
    """Return the training steps of a whole run."""
    return recipe.rounds * sum(len(order(recipe, len(share), k, 0)) for k, share in enumerate(clients))
