"""A server that is itself cut: each piece but the last trains on a head of its own, greedily, as the client does."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .auxiliary import head_of
from .cut import Smashed, divide_sequence, is_sequence
from .errors import BadInput
from .memory import owned_tensors
from .models.blocks import chain
from .server import Server, ServerPart
from .steps import merge, received
from .streams import drawing
from .wire import Message


def names(server_cuts: str) -> list[str]:
    """Return the blocks after which the server's part is cut."""
    return [name.strip() for name in server_cuts.split(",") if name.strip()]


def freeze_first(head: nn.Module) -> None:
    """Leave the first linear layer as it was drawn where it has other than 64 inputs.

    The authors' code for arXiv 2601.19261 builds it for 64, and replaces it on first use after the optimizer was made.
    """
    first = next((module for module in head.modules() if isinstance(module, nn.Linear)), None)
    if first is not None and first.in_features != 64:
        first.requires_grad_(False)


class Greedy(ServerPart):
    """Trains the pieces of the top one after the other on what the piece before gives, detached.

    With 3 or 4 parts in all the authors' code for arXiv 2601.19261 trains so, where its text has one server (docs/papers.md).
    `options` as AuxiliaryLossOptions. The pieces are the top's own modules, so what is evaluated is the whole.
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        self.pieces: list[nn.Module] = []
        self.heads: list[nn.Module] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.saved: Any = None  # of a mark, for heads that are not built yet
        self.handlers = {"smashed": self.handle}

    def handle(self, server: Server, messages: list[Message]) -> list[Message]:
        """Take one step of every piece; nothing goes back."""
        first = messages[0]
        leaves, y = received(server, messages), merge(messages, "labels")["main"]
        z = leaves.pop("main")
        if not self.pieces:
            self._build(server, z)
        pace, turn, meter = server.schedule.pace(first.client), server.schedule.turn(first.client), server.meter
        with meter.step("server", first.client, server.samples(first), server.owned):
            for i, (piece, head, optimizer) in enumerate(zip(self.pieces, self.heads, self.optimizers, strict=True)):
                with meter.phase("server_forward", first.client):
                    with server.training.computing(piece, f"top{i}", first.client, turn, first.step):
                        output: Tensor = piece(z)
                    with server.training.computing(head, f"head{i}", first.client, turn, first.step):
                        loss = server.task.loss(head(output), y)
                with meter.phase("server_backward", first.client):
                    loss.backward()
                    server.training.set_round(optimizer, pace, server.schedule.rate(first.client))
                    server.training.step(optimizer, times=len(self.pieces) - i if self.options.repeat_steps else 1)
                last = piece is self.pieces[-1]
                server.note("loss" if last else f"piece{i + 1}_loss", loss, len(y))
                z = output.detach()
        meter.spend("server", "top", len(y), 3)
        return []

    def predictions(self, server: Server, z: Smashed) -> list[Tensor]:
        """Return the outputs of the heads for activations z (N, *cut) in eval mode, from a copy, so that they can be tried first.

        Raises BadInput where the server's part cannot be cut so.
        """
        if z.others:
            crossing = ", ".join(z.others)
            raise BadInput(f"server_cuts: {crossing} crosses the cut too, and pieces hand on one tensor; drop server_cuts")
        twin = Greedy(self.options)
        twin._build(server, z.main)
        outputs, at = [], z.main
        for piece, head in zip(twin.pieces[:-1], twin.heads, strict=False):
            at = copy.deepcopy(piece).eval()(at)
            outputs.append(head.eval()(at))
        return outputs

    def _build(self, server: Server, z: Tensor) -> None:
        rest: nn.Module = server.top
        if not is_sequence(rest):
            raise BadInput("server_cuts: the server's part is no sequence of blocks; drop server_cuts")
        for name in names(self.options.server_cuts):
            before, rest = divide_sequence(rest, name, "server_cuts")
            self.pieces.append(before)
        self.pieces.append(rest)
        for i, piece in enumerate(self.pieces[:-1]):
            with torch.no_grad(), server.training.computing(piece, "shapes", 0, 0, 0, statistics=False):
                z = piece(z)
            with drawing(server.training.seed, "greedy head", i):
                # the stages behind are not known here, so heads of blocks double their width
                head = head_of(self.options, replace(server.task, cut_shape=tuple(z.shape[1:]), later_stages=())).to(z.device)
            if self.options.freeze_first:
                freeze_first(head)
            self.heads.append(head)
        self.heads.append(nn.Identity())
        self.optimizers = [
            server.training.optimizer(chain([("piece", piece), ("head", head)]))
            for piece, head in zip(self.pieces, self.heads, strict=True)
        ]
        if self.saved is not None:
            for (weights, slots), head, optimizer in zip(self.saved, self.heads, self.optimizers, strict=True):
                head.load_state_dict(weights)
                optimizer.load_state_dict(slots)

    def owned(self) -> Iterator[Tensor]:
        """Yield the tensors of heads and optimizers beyond the top's own."""
        yield from owned_tensors(self.heads, None)
        for optimizer in self.optimizers:
            yield from owned_tensors([], optimizer)

    def state(self) -> dict[str, Any]:
        built = [(head.state_dict(), o.state_dict()) for head, o in zip(self.heads, self.optimizers, strict=True)]
        return {"pieces": built or self.saved}

    def load(self, state: Mapping[str, Any]) -> None:
        self.saved = state["pieces"]
        self.pieces, self.heads, self.optimizers = [], [], []
