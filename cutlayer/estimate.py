"""What a run would cost, before it is run: bytes, memory, parameters, from a few steps on real batches."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice, repeat
from typing import Any

import torch
from torch import Tensor

from . import codecs
from .building import measured_step, order
from .client import Client, Record
from .costs import macs
from .cut import Parts
from .data.items import read_batch
from .data.partition import Partition, split
from .data.sources import Source
from .fit import fitted, single_samples
from .labels_cross import warn_if_inputs_cross
from .memory import total_bytes
from .meter import Direction, Meter
from .parties import Parties, build
from .program import Sends, program
from .recipes.options import method_class, names_of
from .recipes.recipe import Recipe
from .run import data_of, parts_of, task_of
from .server import Handler, Server
from .slots import load_slots, slots
from .task import Batch, Task
from .transports import inprocess
from .transports.link import Link
from .wire import Exchange, Message, family

Payload = Counter[tuple[Direction, str]]
Steps = Counter[tuple[int, Sends | int]]  # by samples, and what is sent: as declared, or the number of an observed step
Exchanges = tuple[list[tuple[Direction, Message]], list[tuple[Direction, Message]]]  # messages of the first and second step
Rows = Callable[[int], int]
PER_SAMPLE = ("smashed", "labels", "context", "features", "feature_grad", "cut_grad")  # roles with a row for each sample


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Payload bytes of the whole run by direction and role, peak bytes by side, parameters and multiply-adds by part.

    Peaks are live tensors. They leave out what grows beyond a few steps of one client: what fsl_sage and loss_threshold store at the
    server, what synthetic_gradient stores at the client, and what codecs of further clients remember. A cost of None is unknown.
    `inexact` says why bytes are an estimate, where they are: rows are nodes, and graphs differ in size; or clients that differ
    merge as they come, and who comes how often is decided by how long they take.
    """

    payload: dict[str, dict[str, int]]
    peak_memory_bytes: dict[str, int]
    parameters: dict[str, int]
    macs_per_sample: dict[str, int | None]
    steps: int
    inexact: str = ""


@single_samples()
def estimate(recipe: Recipe) -> Estimate:
    """Take two training steps of a whole batch, and count their messages as often as the run sends them.

    Messages of smaller batches are those of the whole batch with fewer rows. Hand-overs and evaluations are counted by running the
    protocol with a method that computes nothing.
    """
    data = data_of(recipe).to(recipe.device)
    clients = split(data.train, recipe)
    parts = parts_of(recipe, data)
    task = fitted(task_of(recipe), recipe, parts, data.train)
    warn_if_inputs_cross(recipe, parts, data.train)
    turns = [[len(batch) for batch in order(recipe, len(share), k, 0)] for k, share in enumerate(clients.shares)]
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.num_threads)
    try:
        whole = max(size for sizes in turns for size in sizes)
        joint = [sizes[0] for sizes in turns] if recipe.options.get("server_order") == "concatenated" else [whole]
        measured = min(measured_step(recipe.method_options(), sizes) for sizes in turns if sizes[0] == whole)
        probe, exchanges = _two_steps(recipe, parts, clients, data.train, task, whole, joint, min(measured, 1))
        peak = {side: probe.meter.peak[side] for side in ("client", "server")}
        if recipe.options.get("server_copies"):
            peak["server"] += (len(clients) - 1) * total_bytes(probe.server.owned())
        modules = probe.parts()
        counts = macs(modules, read_batch(data.train, torch.tensor([0]), None, 0, "macs"))
        total, steps = _protocol(recipe, parts, clients, data.train, task, _slots(probe.clients[0]), turns)
        for (size, sends), count in steps.items():
            for key, nbytes in _payload(recipe, probe, exchanges, sends, whole, size).items():
                total[key] += nbytes * count
    finally:
        torch.set_num_threads(threads)
    payload: dict[str, dict[str, int]] = {"up": {}, "down": {}}
    for (direction, role), nbytes in total.items():
        payload[direction][role] = nbytes
    parameters = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    inexact = _inexact(recipe, task, turns) or _undeclared(recipe, exchanges)
    return Estimate(payload, peak, parameters, counts, sum(steps.values()), inexact)


def _inexact(recipe: Recipe, task: Task, turns: list[list[int]]) -> str:
    if task.ragged:
        return "graphs differ in size, and these were counted on one batch"
    if recipe.schedule == "asynchronous" and (recipe.simulated() or any(sizes != turns[0] for sizes in turns)):
        return "clients merge as they come, and who is faster takes more turns; these were counted with as many turns for each"
    if any(part.startswith("minifloat@") for codec in recipe.codec.values() for part in codec.split("+")):
        return "minifloat of given sizes has no sign bit where nothing is negative, and nobody knows yet where that is"
    return ""


def _undeclared(recipe: Recipe, exchanges: Exchanges) -> str:
    """Return the reason if a method without `sends` may send other messages in later steps than in its first two."""
    if hasattr(method_class(recipe.method), "sends"):
        return ""
    first, second = ([(direction, message.kind) for direction, message in step] for step in exchanges)
    every = [name for name, value in recipe.options.items() if name.endswith("_every") and value not in (0, 1)]
    if first == second and not every:
        return ""
    return f"method {recipe.method} does not declare in which steps it sends (`sends`); its first two steps stand for all"


def _two_steps(
    recipe: Recipe, parts: Parts, clients: Partition, source: Source, task: Task, size: int, joint: Sequence[int], measured: int
) -> tuple[Parties, Exchanges]:
    """Run one client for two steps of `size` samples; return the parties, and the messages of each step.

    If the method declares `sends`, both steps send all that any step sends. The server computes each message as one step with
    copies of it for batches of `joint` samples.
    """
    share = torch.tensor(list(islice(cycle(clients.shares[0].tolist()), 2 * size)))
    one = dataclasses.replace(clients, shares=(share,))
    options = {k: v for k, v in recipe.options.items() if k not in names_of(type(recipe.schedule_options()))}
    if hasattr(method_class(recipe.method), "sends"):
        options |= {name: 1 for name in options if name.endswith("_every")}
    alone = dataclasses.replace(
        recipe, rounds=1, num_clients=1, warmup_rounds=0, batch_size=size, local_epochs=1, schedule="relay", options=options
    )
    parties = build(alone, parts, one, source, task, lambda: None)
    parties.clients[0].sample_step = measured
    if list(joint) != [size]:
        handle = parties.server.handlers["smashed"]
        together = partial(_together, handle, [partial(_rows, task, parties.clients[0], size, n) for n in joint])
        parties.server.handlers = {**parties.server.handlers, "smashed": together}
    exchanges: Exchanges = ([], [])
    life = program(parties.clients[0], parties.methods[0], parties.batches[0])
    inprocess.run({0: _watched(life, exchanges)}, parties.server, parties.ends, parties.meter)
    return parties, exchanges


def _slots(client: Client) -> dict[str, Tensor]:
    """Return the optimizer state of a client whose modules have all stepped, also of a module that learns later than in two steps."""
    found = slots(client)
    kinds = {role.rpartition("/")[2]: value.dim() for role, value in found.items()}
    for name in client.travels:
        if any(role.startswith(f"optimizer/{name}.") for role in found):
            continue
        trained = {key: p for key, p in client.modules[name].named_parameters() if p.requires_grad}
        found |= {
            f"optimizer/{name}.{k}/{slot}": p if dim else p.new_zeros(())
            for k, p in trained.items()
            for slot, dim in kinds.items()
        }
    return found


def _together(handle: Handler, rows: Sequence[Rows], server: Server, messages: list[Message]) -> list[Message]:
    """Let the server take one step on a message and copies of it with other numbers of rows; return the message's own reply."""
    return handle(server, [_resized(messages[0], each) for each in rows])[:1]


def _watched(life: Exchange[None], exchanges: Exchanges) -> Exchange[None]:
    """Run a client's program, and note every training message under its step."""
    reply: Message | None = None
    while True:
        try:
            sent = life.send(reply)
        except StopIteration:
            return
        if isinstance(sent, Message) and not sent.is_sync:
            exchanges[sent.step].append(("up", _copied(sent)))
        reply = yield sent
        if reply is not None and reply.kind != "go":
            exchanges[reply.step].append(("down", _copied(reply)))


def _copied(message: Message) -> Message:
    """Return a message with tensors of its own, so that keeping it does not lengthen the life of the party's tensors."""
    return dataclasses.replace(message, tensors={role: tensor.clone() for role, tensor in message.tensors.items()}, packed=None)


def _rows(task: Task, client: Client, whole: int, size: int, rows: int) -> int:
    """Return the rows of a tensor in a batch of `size` samples, from its rows in the whole batch."""
    if rows == whole:
        return size
    if client.reducer is not None and rows == client.reducer.rows(whole):
        return client.reducer.rows(size)
    return round(rows * size / whole) if task.ragged else rows


def _resized(message: Message, rows: Rows) -> Message:
    """Return a message with other numbers of rows; weights and losses have none."""
    tensors = {
        role: tensor[torch.arange(rows(len(tensor))) % len(tensor)] if family(role) in PER_SAMPLE and tensor.dim() else tensor
        for role, tensor in message.tensors.items()
    }
    return dataclasses.replace(message, tensors=tensors)


def _payload(recipe: Recipe, probe: Parties, exchanges: Exchanges, sends: Sends | int, whole: int, size: int) -> Payload:
    """Return the payload bytes of one step on `size` samples; `sends` as declared by the method, or the number of the step."""
    client = probe.clients[0]
    mine, theirs = (codecs.build(recipe.codec, recipe.seed, 0, end) for end in ("client", "server"))
    link, cost = Link([(mine, theirs)], Meter(recipe.device)), Payload()
    for direction, message in _messages(exchanges, sends):
        _, packed = link.carry(direction, _resized(message, partial(_rows, client.task, client, whole, size)))
        for role, nbytes in packed.payload().items():
            cost[direction, role] += nbytes
    return cost


def _messages(exchanges: Exchanges, sends: Sends | int) -> list[tuple[Direction, Message]]:
    """Return the messages of a step: of a full one the part that it sends, or those of the first or of the second step."""
    if isinstance(sends, int):
        return exchanges[sends]
    if not sends.up:
        return []
    last = max((i for i, (direction, _) in enumerate(exchanges[0]) if direction == "up"), default=-1)
    return exchanges[0] if sends.down else exchanges[0][: last + 1]


class Counting:
    """A method that computes and sends nothing, and counts its steps by batch size and by what a real step would send."""

    def __init__(self, recipe: Recipe, sizes: list[int], steps: Steps) -> None:
        declared = getattr(method_class(recipe.method), "sends", None)
        self.sends = partial(declared, recipe.method_options()) if declared else lambda round, step, seen: min(seen, 1)
        self.sizes, self.steps, self.seen = sizes, steps, 0

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        yield from ()
        self.steps[self.sizes[client.step], self.sends(client.round, client.step, self.seen)] += 1
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
) -> tuple[Payload, Steps]:
    """Return the bytes of all hand-overs and evaluations, and the number of steps by batch size and what they send.

    `state` is what an optimizer holds once it has stepped.
    """
    parties = build(recipe, parts, clients, source, task, lambda: None)
    parties.server.part = None  # no losses, no decisions: what is counted is that everything is sent
    none, steps = Batch(torch.empty(0), torch.empty(0)), Steps()
    programs = {}
    for client, sizes, its in zip(parties.clients, turns, parties.batches, strict=True):
        load_slots(client, state)
        nothing = its._replace(iterate=lambda round, first, num=its.per_round: repeat(none, num - first))  # type: ignore[misc]
        programs[client.id] = program(client, Counting(recipe, sizes, steps), nothing)
    inprocess.run(programs, parties.server, parties.ends, parties.meter)
    payload = Payload()
    for (direction, role, _), nbytes in parties.meter.payload.items():
        payload[direction, role] += nbytes  # type: ignore[index]
    return payload, steps
