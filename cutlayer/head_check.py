"""A trial of everything that a method adds beside the network and that predicts targets, at the client and at the server."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .client import Client, Loss
from .cut import Smashed
from .data.sources import Source
from .errors import BadInput
from .fit import FEW, MANY, tried_samples
from .loss_check import check_number, loss_copy, random_outputs, reads_targets, tells_apart
from .server import Server
from .streams import drawing
from .task import Batch, Task


class Sent(NamedTuple):
    """What crosses of a batch, the batch, and the shape of the network's output for it."""

    z: Smashed
    batch: Batch
    output_shape: tuple[int, ...]


def check_client_heads(client: Client, source: Source) -> None:
    """Try each module that a method added beside the bottom, with its own loss, on two batches of different sizes in eval mode.

    A module whose loss is the task's is a head: its output must have the shape of the network's, for which the loss was tried.
    A module with a loss of its own must not ignore which sample a target belongs to, if it reads targets at all.
    Raises BadInput.
    """
    if not client.losses or not client.task.layouts:
        return
    task = replace(client.task, loss=loss_copy(client.task.loss))
    added = {name: copy.deepcopy(client.modules[name]).eval() for name in client.losses}
    with drawing(0, "trial of heads"), torch.no_grad(), client.training.autocast():
        for sent in _sent(client.modules["bottom"], source, task):
            for name, loss in client.losses.items():
                _try_module(name, added[name], loss, sent, task)


def check_server_heads(server: Server, bottom: nn.Module, source: Source) -> None:
    """Try the heads of a method's server part: those whose outputs it gives as `predictions(server, z)`. Raises BadInput."""
    predictions = getattr(server.part, "predictions", None)
    if predictions is None or not server.task.layouts:
        return
    with drawing(0, "trial of heads"), torch.no_grad(), server.training.autocast():
        for sent in _sent(bottom, source, server.task):
            for output in predictions(server, sent.z):
                _check_shape("a head at the server", output, sent.output_shape)


def _sent(bottom: nn.Module, source: Source, task: Task) -> Iterator[Sent]:
    """Yield what crosses of a batch of MANY samples and of one of FEW."""
    layout, bottom = task.layouts["output"], copy.deepcopy(bottom).eval()
    for size, shape in ((MANY, layout.many), (FEW, layout.few)):
        batch = tried_samples(source, size)
        yield Sent(Smashed.through(bottom, batch), batch, shape)


def _try_module(name: str, module: nn.Module, loss: Loss, sent: Sent, task: Task) -> None:
    outputs, is_head = list[Tensor](), False
    hook = module.register_forward_hook(lambda module, given, output: outputs.append(output))

    def checked_loss(output: Tensor, y: Tensor) -> Tensor:
        nonlocal is_head
        is_head = True
        _check_shape(f"the module {name!r} beside the bottom", output, sent.output_shape)
        return task.loss(output, y)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = loss(module, sent.z, sent.batch, replace(task, loss=checked_loss))
    except BadInput:
        if is_head:
            raise
        return  # its own refusal, which the first step repeats where it holds
    except Exception as error:  # a stranger's module or loss may raise anything
        if outputs and not is_head:
            return  # its loss takes other batches than those of the data, as a regressor's
        reason = str(error).partition("\n")[0]
        given = f"its output of shape {tuple(outputs[-1].shape)}" if outputs else _at_cut(sent.z, task)
        who = "the loss" if outputs else f"the module {name!r} beside the bottom"
        raise BadInput(f"{who} cannot take {given} ({reason}); choose another head, or method backprop") from error
    finally:
        hook.remove()
    if is_head:
        check_number(value)
    elif outputs and isinstance(outputs[-1], Tensor):
        _check_own_loss(name, loss, outputs[-1], sent, task)


def _check_own_loss(name: str, loss: Loss, output: Tensor, sent: Sent, task: Task) -> None:
    """Raise BadInput if a module's own loss depends on the targets, but not on whose they are."""
    y = sent.batch.y

    def of(output: Tensor, y: Tensor) -> Tensor:
        return loss(_Constant(output), sent.z, sent.batch._replace(y=y), task)

    drawn = list(random_outputs(output.shape, output, y))
    found = [tells_apart(of, each, y) for each in drawn]
    if False in found and True not in found and any(reads_targets(of, each, y) for each in drawn):
        raise BadInput(
            f"the loss of the module {name!r} stays the same when the targets of unlike samples are permuted (outputs "
            f"{tuple(output.shape)}, targets {tuple(y.shape)}); give its outputs the shape of the targets"
        )


class _Constant(nn.Module):
    """A module that gives one output whatever it is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *given: Tensor, **others: Tensor) -> Tensor:
        return self.output


def _check_shape(who: str, output: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(output.shape) != wanted:
        raise BadInput(
            f"{who} gives outputs of shape {tuple(output.shape)} where the network gives {wanted}; choose another head, or one of your "
            "own whose outputs have task.output_shape"
        )


def _at_cut(z: Smashed, task: Task) -> str:
    axis = f", whose batch is axis {task.cut_axis}" if task.cut_axis else ""
    return f"activations of shape {tuple(z.main.shape)}{axis}"
