"""The server: a function from a message to the replies now due; it never blocks."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .client import Training
from .errors import BadInput
from .meter import Meter, owned_bytes
from .schedules import Schedule
from .task import Task
from .wire import Message

Handler = Callable[["Server", list[Message]], list[Message]]


class Server:
    """Owns the top and its optimizer; the schedule says what is computed now and who goes on (docs/architecture.md).

    `weights` are the clients' newest weights by <module>.<parameter>, `version` their number, `holder` who made them.
    `on_round(server)` runs when a round is over, before anybody goes on; `on_mark(server)` when nothing is under way.
    """

    def __init__(
        self,
        top: nn.Module,
        schedule: Schedule,
        training: Training,
        task: Task,
        *,
        meter: Meter | None = None,
        handlers: Mapping[str, Handler] = {},
        copy_input: bool = False,
        on_round: Callable[["Server"], None] = lambda server: None,
        on_mark: Callable[["Server"], None] = lambda server: None,
    ) -> None:
        self.top, self.schedule, self.training, self.task = top, schedule, training, task
        self.meter = meter or Meter()
        self.handlers: Mapping[str, Handler] = {"smashed": train_step, "feature_grad": finish_step, **handlers}
        self.copy_input, self.on_round, self.on_mark = copy_input, on_round, on_mark
        self.optimizer = training.optimizer(top)
        self.weights: dict[str, Tensor] = {}
        self.slots: dict[str, Tensor] = {}
        self.version, self.holder = 0, -1
        self.sampled = (-1, -1)
        self.records: dict[int, dict[str, float]] = {}
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.open: dict[int, tuple[dict[str, Tensor], Tensor, ExitStack]] = {}

    def handle(self, message: Message) -> list[Message]:
        """Return the replies now due, addressed by their `client`; raises BadInput on a kind nobody handles."""
        if message.kind == "mark":
            self.on_mark(self)
            return [Message("mark", client=message.client, step=message.step)]
        if message.kind == "sync":
            return self._sync(message)
        if message.kind not in self.handlers:
            raise BadInput(f"a message of kind {message.kind!r} arrived; this server handles {', '.join(self.handlers)}")
        replies = []
        for step in self.schedule.due(self, message):
            replies += self.handlers[step[0].kind](self, step)
        return replies

    def _sync(self, message: Message) -> list[Message]:
        if message.numbers["done"]:
            self.records[message.client] = {
                name.partition("/")[2]: value for name, value in message.numbers.items() if name.startswith("record/")
            }
            arrived = {role.partition("/")[2]: t for role, t in message.tensors.items() if not role.startswith("optimizer/")}
            if arrived:
                self.weights, self.holder = arrived, message.client
                self.slots = {role: t for role, t in message.tensors.items() if role.startswith("optimizer/")}
        gos = self.schedule.sync(self, message)
        return gos

    def end_round(self) -> None:
        """Tell whoever keeps records that a round is over, and begin new sums."""
        self.on_round(self)
        self.records, self.totals, self.counts = {}, {}, {}

    def go(self, client: int, *, version: int, give_back: int, stop: bool, step: int) -> Message:
        """Return the message that lets a client go on: with weights if its own are older."""
        tensors: dict[str, Tensor] = {}
        if not stop and version < self.version and self.holder != client:
            tensors = {f"weights/{name}": t for name, t in self.weights.items()} | self.slots
        numbers = {"stop": float(stop), "version": float(self.version), "return": float(give_back)}
        return Message("go", tensors, numbers, client, step)

    def note(self, name: str, value: Tensor, samples: int) -> None:
        """Add a batch mean to the sums of this round, on the device."""
        self.totals[name] = self.totals.get(name, 0) + value.detach().float() * samples
        self.counts[name] = self.counts.get(name, 0) + samples

    def record(self) -> dict[str, float]:
        """Return the means of this round so far."""
        return {name: float(total) / self.counts[name] for name, total in self.totals.items()}

    def samples(self, message: Message) -> bool:
        """Return whether a step is measured: the first of each client in each round."""
        turn = message.client, self.schedule.round
        first, self.sampled = turn != self.sampled, turn
        return first

    def owned(self) -> int:
        return owned_bytes([self.top], self.optimizer)

    def state(self) -> dict[str, Any]:
        return {
            "top": self.top.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state(),
            "weights": self.weights, "slots": self.slots, "version": self.version, "holder": self.holder,
            "records": {str(k): v for k, v in self.records.items()}, "totals": self.totals, "counts": self.counts,
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        self.top.load_state_dict(state["top"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load(state["schedule"])
        self.weights, self.slots = dict(state["weights"]), dict(state["slots"])
        self.version, self.holder = state["version"], state["holder"]
        self.records = {int(k): dict(v) for k, v in state["records"].items()}
        self.totals, self.counts = dict(state["totals"]), dict(state["counts"])


def _merge(messages: list[Message], role: str) -> dict[str, Tensor]:
    """Return the tensors of a role and its context, by name, rows of all messages one after the other."""
    merged: dict[str, Tensor] = {}
    for name in messages[0].tensors:
        head, _, rest = name.partition("/")
        if head in (role, "context"):
            rows = [message.tensors[name] for message in messages]
            merged[rest or "main"] = rows[0] if len(rows) == 1 else torch.cat(rows)
    return merged


def _forward(server: Server, messages: list[Message], gradient: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Return the received leaves by name and the top's output."""
    leaves = _merge(messages, "smashed")
    for leaf in leaves.values():
        if gradient and leaf.is_floating_point():
            leaf.requires_grad_()
    inputs = {name: leaf.clone() if server.copy_input and gradient else leaf for name, leaf in leaves.items()}
    with server.training.autocast():
        output: Tensor = server.top(inputs.pop("main"), **inputs)
    return leaves, output


def train_step(server: Server, messages: list[Message]) -> list[Message]:
    """One step of the top on the rows of all messages; replies cut_grad to those who wait for it.

    An open message has no labels: its sender gets the features back and sends their gradient (`finish_step`).
    """
    first = messages[0]
    measured = server.meter.step("server", first.client, server.samples(first), server.owned)
    if first.open:
        step = ExitStack()  # the step stays open until the second half closes it
        step.enter_context(measured)
        with server.meter.phase("server_forward", first.client):
            leaves, output = _forward(server, messages, gradient=True)
        server.open[first.client] = leaves, output, step
        return [Message("features", {"features": output.detach()}, client=first.client, step=first.step)]
    with measured:
        gradient = any(message.reply != "none" for message in messages)
        with server.meter.phase("server_forward", first.client):
            leaves, output = _forward(server, messages, gradient)
            y = _merge(messages, "labels")["main"]
            with server.training.autocast():
                loss = server.task.loss(output, y)
        with server.meter.phase("server_backward", first.client):
            loss.backward()
            server.training.set_round(server.optimizer, server.schedule.round)
            server.training.step(server.optimizer)
        server.note("loss", loss, len(y))
        del output, loss
    return _cut_grads(messages, leaves)


def finish_step(server: Server, messages: list[Message]) -> list[Message]:
    """The second half of a U-shaped exchange: backward from the features' gradient, one step, reply cut_grad."""
    (message,) = messages
    leaves, output, step = server.open.pop(message.client)
    with step, server.meter.phase("server_backward", message.client):
        output.backward(message.tensors["feature_grad"].to(output.dtype))
        server.training.set_round(server.optimizer, server.schedule.round)
        server.training.step(server.optimizer)
    return _cut_grads(messages, leaves)


def _cut_grads(messages: list[Message], leaves: Mapping[str, Tensor]) -> list[Message]:
    replies, start = [], 0
    grads = {"cut_grad" if name == "main" else f"cut_grad/{name}": leaf.grad for name, leaf in leaves.items()}
    rows = len(leaves["main"])
    for message in messages:
        size = len(message.tensors["smashed"]) if "smashed" in message.tensors else rows
        if message.reply != "none":
            mine = {role: grad[start : start + size] for role, grad in grads.items() if grad is not None}
            replies.append(Message("cut_grad", mine, client=message.client, step=message.step))
        start += size
    return replies
