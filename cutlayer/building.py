"""From a recipe and parts to single parties: a client with its method and batches, or the server, each from copies."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import codecs
from .client import Batches, Client
from .cut import Parts
from .data.items import read_batch
from .data.sources import Source
from .errors import Advice, BadInput
from .fit import autocast, drawing_part, extreme_samples, overwrites
from .head_check import check_client_heads, check_server_heads
from .meter import Meter
from .program import Method
from .recipes.options import method_class, schedule_class
from .recipes.recipe import Recipe
from .schedules import Plan, Schedule
from .schedules.parallel import period
from .server import Server, ServerPart
from .streams import drawing, stream
from .task import Batch, Task
from .training import Training
from .wire import Codecs

FLOATS = ("float16", "bfloat16", "float8")  # codecs that keep 0 and 1


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


def training(recipe: Recipe, lr: float | None = None) -> Training:
    """Return how a side takes a step under a recipe, at the recipe's learning rate or one of its own."""
    lr = recipe.lr if lr is None else lr

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if recipe.optimizer == "adam":
            return torch.optim.Adam(groups, lr=lr, weight_decay=recipe.weight_decay)
        return torch.optim.SGD(
            groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
        )

    device = torch.device(recipe.device).type
    bf16 = recipe.precision == "bfloat16"
    if bf16 and device == "cpu" and torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        slow = (
            "precision = bfloat16: PyTorch has no fast bfloat16 on this processor, and may take ten times as long as in float32"
        )
        warnings.warn(f"{slow}; choose precision = float32", Advice, stacklevel=1)  # once, wherever it is from
    return Training(make, lr_factor(recipe), recipe.clip, recipe.fedprox, recipe.seed, not recipe.overlap, autocast(recipe))


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


def left_out(recipe: Recipe, n: int) -> int:
    """Return how many of n samples are in no batch of a pass, others in every pass: a single last one, as BatchNorm cannot train on it.

    With `drop_last` it is any last batch that is not whole. Who has one batch alone keeps it.
    """
    rest = n % recipe.batch_size
    return rest if n > recipe.batch_size > 1 and (rest == 1 or recipe.drop_last) else 0


def order(recipe: Recipe, n: int, client: int, round: int) -> list[Tensor]:
    """Return the positions (B,) of each batch of one client in one round: a fresh permutation for each local epoch."""
    batches = []
    for epoch in range(recipe.local_epochs):
        generator = stream(recipe.seed, "order", client, round * recipe.local_epochs + epoch)
        split = list(torch.randperm(n, generator=generator).split(recipe.batch_size))
        if left_out(recipe, n):
            split.pop()
        batches += split
    return batches


def batches_per_round(recipe: Recipe, n: int) -> int:
    """Return how many batches a client with n samples has in one round, as `order` makes them."""
    return recipe.local_epochs * (math.ceil(n / recipe.batch_size) - (left_out(recipe, n) > 0))


def batches(recipe: Recipe, source: Source, share: Tensor, client: int, tick: Callable[[], None] = lambda: None) -> Batches:
    """Return a client's batches; order, augmentation and what items draw are streams of the recipe's seed."""
    place = placement(recipe)

    def iterate(round: int, first: int) -> Iterator[Batch]:
        for step, positions in enumerate(order(recipe, len(share), client, round)[first:], first):
            at = client, round, step
            batch = read_batch(source, share[positions], stream(recipe.seed, "augment", *at), recipe.seed, "items", *at)
            tick()
            yield batch._replace(x=place(batch.x))

    num = batches_per_round(recipe, len(share))
    return Batches(iterate, num, num // recipe.local_epochs)


class DataOwner(NamedTuple):
    """A client with its method and its batches."""

    client: Client
    method: Method
    batches: Batches


class Builder:
    """Makes the parties of a recipe, one by one, from copies of its parts; whoever makes them, they are the same bits.

    `source` has the samples that shapes are taken from and, at a client, those it trains on; `tick` is called for every batch.
    """

    def __init__(
        self, recipe: Recipe, parts: Parts, source: Source, task: Task, meter: Meter, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.recipe, self.parts, self.source, self.task, self.meter, self.tick = recipe, parts, source, task, meter, tick
        kept = {one.partition("@")[0] for one in recipe.codec.get("features", "").split("+")} <= {"", *FLOATS}
        if getattr(parts.tail, "carries_mask", False) and not kept:
            raise BadInput(
                f"codec features = {recipe.codec['features']!r}: features of a text carry the attention mask, which only "
                f"{', '.join(FLOATS)} keep; take one of them"
            )
        self.training, self.client_training = training(recipe), training(recipe, recipe.client_lr)
        self.method, self.options, self.how_often = (
            method_class(recipe.method),
            recipe.method_options(),
            recipe.schedule_options(),
        )
        self.hand_over = getattr(self.how_often, "hand_over", "local")

    def owner(self, k: int, share: Tensor, first: Client | None = None) -> DataOwner:
        """Return client k on its share of the samples (indices); where clients are one model, it is that of the `first`."""
        recipe = self.recipe
        shared = first is not None and self.hand_over == "shared"
        its_batches = batches(recipe, self.source, share, k, self.tick)
        if first is not None and shared:
            own = dict(first.modules.items())
        else:
            bottom, tail = copy.deepcopy((self.parts.bottom, self.parts.tail))
            own = {"bottom": bottom} | ({"tail": tail} if tail is not None else {})
        sizes = [len(batch) for batch in order(recipe, len(share), k, 0)]
        with drawing(recipe.seed, "auxiliary"):
            client = Client(
                k, {n: place_module(recipe, m) for n, m in own.items()}, self.client_training, self.task, meter=self.meter,
                weight=len(share), hand_over=self.hand_over, sample_step=measured_step(self.options, sizes),
                keeps_norm=getattr(self.how_often, "batch_norm", "") == "local", turn=turn_of(self.how_often, its_batches),
                optimizer=first.optimizer if first is not None and shared else None,
            )  # fmt: skip
            method = self.method(self.options, client)
        for module in client.modules.values():
            place_module(recipe, module)
        client.reducer = codecs.reducer(recipe.codec, recipe.seed, k)
        if first is None:
            check_client_heads(client, self.source)
        return DataOwner(client, method, its_batches)

    def codecs(self, k: int, end: str) -> Codecs:
        """Return one end's codecs by role for client k; `end` is client or server."""
        return codecs.build(self.recipe.codec, self.recipe.seed, k, end)

    def schedule(self, num_clients: int) -> Schedule:
        """Return a new schedule of the recipe for so many clients."""
        recipe = self.recipe
        plan = Plan(num_clients, recipe.rounds, recipe.evaluate_every, recipe.seed)
        return schedule_class(recipe.schedule)(self.how_often, plan)

    def server_part(self) -> ServerPart | None:
        """Return a new server half of the method, or None if it has none."""
        make_part = getattr(self.method, "server_part", None)
        return make_part(self.options) if make_part else None

    def server(self, num_clients: int, client: Client, ends: Mapping[int, Codecs]) -> Server:
        """Return the server; `client` is any of the clients as it was built, `ends` the codecs at this end."""
        recipe = self.recipe
        server = Server(
            place_module(recipe, copy.deepcopy(self.parts.top)), self.schedule(num_clients), self.training, self.task,
            meter=self.meter, part=self.server_part(), codecs=ends,
            copy_input=overwrites(self.parts, extreme_samples(self.source)),
        )  # fmt: skip
        check_server_heads(server, client.modules["bottom"], self.source)
        if getattr(server.schedule, "needs_start", False):
            server.weights = {name: tensor.clone() for name, tensor in client.weights().items()}
        if recipe.overlap:
            part = drawing_part({**client.modules, "top": server.top}, extreme_samples(self.source))
            if part is not None:
                raise BadInput(
                    f"overlap: the {part} draws random numbers (dropout), and both threads would draw from one generator; drop one"
                )
        return server


def measured_step(options: Any, sizes: Sequence[int]) -> int:
    """Return the step of a round whose memory is measured, from the batch sizes of the round.

    It is the second that sends activations, when the optimizer has state; the first step, if the second is not a whole batch.
    """
    second: int = getattr(options, "send_every", 1)
    return second if list(sizes[second : second + 1]) == list(sizes[:1]) else 0


def turn_of(options: Any, batches: Batches) -> int:
    """Return after how many steps a client has to sync; 0: after a round."""
    number, unit = period(getattr(options, "sync_every", "never"))
    return number * {"batch": 1, "epoch": batches.per_epoch, "round": 0}[unit]


def num_steps(recipe: Recipe, clients: Sequence[Tensor]) -> int:
    """Return the training steps of a whole run."""
    return recipe.rounds * sum(batches_per_round(recipe, len(share)) for share in clients)
