"""What the server computes when activations arrive: forward, loss, backward, one optimizer step, the gradient at the cut."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .rows import join_rows
from .task import Task
from .wire import Message

if TYPE_CHECKING:
    from .server import Server


def merge(messages: list[Message], role: str) -> dict[str, Tensor]:
    """Return the tensors of a role and its context, by name, rows of all messages one after the other."""
    merged: dict[str, Tensor] = {}
    for name in messages[0].tensors:
        head, _, rest = name.partition("/")
        if head in (role, "context"):
            rows = [message.tensors[name] for message in messages]
            merged[rest or "main"] = rows[0] if len(rows) == 1 else join_rows(rows, name)
    return merged


def named(role: str, name: str) -> str:
    """Return the name in a message of a tensor that `merge` gave this one."""
    return role if name == "main" else f"{role}/{name}"


def forward(
    server: "Server", messages: list[Message], gradient: bool, statistics: bool = True
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the received leaves by name and the top's output, if so wanted without a trace in running statistics."""
    leaves = received(server, messages)
    for leaf in leaves.values():
        if gradient and leaf.is_floating_point():
            leaf.requires_grad_()
    inputs = {name: leaf.clone() if server.copy_input else leaf for name, leaf in leaves.items()}
    first = messages[0]
    top, turn = server.top_of(first.client), server.schedule.turn(first.client)
    with server.training.computing(top, "top", first.client, turn, first.step, statistics=statistics):
        output: Tensor = top(inputs.pop("main"), **inputs)
    return leaves, output


def received(server: "Server", messages: list[Message]) -> dict[str, Tensor]:
    """Return the smashed data of all messages and their context by name, as the top computes on them."""
    with server.training.autocast():
        return as_computed(merge(messages, "smashed"), messages[0])


def as_computed(leaves: dict[str, Tensor], message: Message) -> dict[str, Tensor]:
    """Return leaves in the dtype of autocast where a codec made them float32: along every shortcut of the top they would stay so."""
    device = leaves["main"].device.type
    if message.packed is None or not torch.is_autocast_enabled(device):
        return leaves
    dtype = torch.get_autocast_dtype(device)
    coded = {role.role for role in message.packed.roles if role.coded}
    return {name: leaf.to(dtype) if named("smashed", name) in coded else leaf for name, leaf in leaves.items()}


def train_step(server: "Server", messages: list[Message]) -> list[Message]:
    """One step of the top on the rows of all messages; replies cut_grad to those who wait for it.

    An open message has no labels: its sender gets the features back and sends their gradient (`finish_step`).
    """
    first = messages[0]
    measured = server.meter.step("server", first.client, server.samples(first), server.owned)
    if first.open:
        step = ExitStack()  # the step stays open until the second half closes it
        step.enter_context(measured)
        with server.meter.phase("server_forward", first.client):
            leaves, output = forward(server, messages, gradient=True)
        server.meter.spend("server", "top", count(leaves, server.task))
        server.open[first.client] = leaves, output, step
        return [Message("features", {"features": output.detach()}, client=first.client, step=first.step)]
    with measured:
        gradient = any(message.reply != "none" for message in messages)
        with server.meter.phase("server_forward", first.client):
            leaves, output = forward(server, messages, gradient)
            y = merge(messages, "labels")["main"]
            turn = server.schedule.turn(first.client)
            with server.training.autocast(), server.training.dropout("loss", first.client, turn, first.step):
                loss = server.task.loss(output, y)
        with server.meter.phase("server_backward", first.client):
            loss.backward()
            server.step(first.client)
        server.meter.spend("server", "top", len(y), 3)
        server.note("loss", loss, len(y))
        del output, loss
    return _cut_grads(messages, leaves)


def finish_step(server: "Server", messages: list[Message]) -> list[Message]:
    """The second half of a U-shaped exchange: backward from the features' gradient, one step, reply cut_grad."""
    (message,) = messages
    leaves, output, step = server.open.pop(message.client)
    with step, server.meter.phase("server_backward", message.client):
        output.backward(message.tensors["feature_grad"].to(output.dtype))
        server.step(message.client)
    server.meter.spend("server", "top", count(leaves, server.task), 2)
    return _cut_grads(messages, leaves)


def _cut_grads(messages: list[Message], leaves: Mapping[str, Tensor]) -> list[Message]:
    """Return to each sender who waits the gradients of its own rows, of which each tensor may have another number."""
    replies: list[Message] = []
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    start = dict.fromkeys(grads, 0)
    for message in messages:
        mine = {}
        for name, grad in grads.items():
            if len(messages) > 1:  # a single message may hold tensors without rows
                rows = len(message.tensors[named("smashed", name)])
                grad = grad[start[name] : start[name] + rows]
                start[name] += rows
            mine[named("cut_grad", name)] = grad
        if message.reply != "none":
            replies.append(Message("cut_grad", mine, client=message.client, step=message.step))
    return replies


def count(leaves: Mapping[str, Tensor], task: Task) -> int:
    """Return the number of samples in a batch: rows, or graphs if rows are nodes."""
    return len(leaves["nodes"]) if "nodes" in leaves else leaves["main"].shape[task.cut_axis]
