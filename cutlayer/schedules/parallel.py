"""SplitFed and its relatives: all clients at once, each with its own bottom, averaged at every sync."""

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field

from ..errors import BadInput
from ..kept import message_of, message_tree
from ..streams import stream
from ..wire import Message
from .base import Plan

if TYPE_CHECKING:
    from ..server import Server

PERIOD = re.compile(r"(\d+) ?(batch|epoch|round)(?:es|s)?")


def period(sync_every: str) -> tuple[int, str]:
    """Return number and unit (batch, epoch, round) of a period; never is 0 rounds."""
    if sync_every == "never":
        return 0, "round"
    found = PERIOD.fullmatch(sync_every)
    if found is None or found[1].startswith("0"):
        raise ValueError("write 5 batches, 1 epoch, 2 rounds, or never")
    return int(found[1]), found[2]


def _checked(sync_every: str) -> str:
    period(sync_every)
    return sync_every


@dataclass(frozen=True)
class AveragingOptions:
    """How the models of many clients become one."""

    weighting: Annotated[
        Literal["samples", "uniform", "batches"], "a client's weight in an average: its samples, its batches, or all alike"
    ] = "samples"
    batch_norm: Annotated[
        Literal["averaged", "pooled", "local"],
        "BatchNorm in an average: like weights; with the variance of the union; or each client keeps its own (FedBN)",
    ] = "averaged"


@dataclass(frozen=True)
class ParallelOptions(AveragingOptions):
    """Whose weights are averaged when, and in which order a shared server computes."""

    hand_over: Annotated[Literal["local", "reset"], "optimizer state when averaged weights arrive: kept, or cleared"] = "local"
    server_copies: Annotated[
        bool, "a copy of the top for each client, averaged like the clients (SplitFed V1); else one (V2)"
    ] = False
    server_order: Annotated[
        Literal["client_major", "batch_major", "concatenated", "arrival"],
        "one shared top: client after client; batch after batch in random order; all clients' batches in one step; as they come",
    ] = "client_major"
    private_clients: Annotated[bool, "client models are never averaged (SplitFed V3 with server_copies)"] = False
    sync_every: Annotated[
        Annotated[str, AfterValidator(_checked)], "when models are averaged: 5 batches, 1 epoch, 2 rounds, never"
    ] = "1 round"
    participation: Annotated[Annotated[float, Field(gt=0, le=1)], "share of the clients drawn in each round"] = 1.0


class Parallel:
    """SplitFed (Thapa et al., arXiv 2004.12088): V1 with server copies, V2 with one server, V3 with private clients.

    Clients are weighted by their samples, where the authors' code gives all the same weight; their optimizers stay as they
    are unless `hand_over` is reset, where that code makes new ones for every turn and, at the server, for every batch.
    With client_major a client goes on only when the one before it has finished, in an order drawn for every round, where there
    is a top that learns.
    Who has no batches left in a round takes no part in its further averages.
    """

    Options: ClassVar[type] = ParallelOptions

    def __init__(self, options: ParallelOptions, plan: Plan) -> None:
        self.options, self.plan, self.server_copies = options, plan, options.server_copies
        self.every, self.unit = period(options.sync_every)
        self.round = 0
        self.absent: set[int] = set()
        self.finished: set[int] = set()  # of this round
        self.done: dict[int, float] = {}  # clients of this segment that have synced, with their weights
        self.held: dict[int, deque[Message]] = {k: deque() for k in range(plan.num_clients)}
        self.longest = 0  # batches of a client's round
        self.index = 0  # of the batch that batch_major draws an order for
        self.order = self._draw()

    def _draw(self) -> list[int]:
        """Return the round's clients, in the order of their turns."""
        generator = stream(self.plan.seed, "clients", round=self.round)
        order = [int(k) for k in torch.randperm(self.plan.num_clients, generator=generator) if int(k) not in self.absent]
        return order[: math.ceil(self.options.participation * len(order) - 1e-9)]

    def _running(self) -> list[int]:
        """Return who has still something to do in this segment, in order."""
        return [k for k in self.order if k not in self.finished and k not in self.done]

    def due(self, server: "Server", message: Message | None) -> list[list[Message]]:
        if message is not None:
            if self.server_copies or self.options.server_order in ("client_major", "arrival"):
                return [[message]]
            self.held[message.client].append(message)
        steps: list[list[Message]] = []
        while all(self.held[k] for k in self._running()) and any(self.held.values()):
            generator = stream(self.plan.seed, "batches", round=self.round, step=self.index)
            self.index += 1
            order = torch.randperm(self.plan.num_clients, generator=generator).tolist()
            concatenated = self.options.server_order == "concatenated"
            batch = [self.held[k].popleft() for k in (sorted(order) if concatenated else order) if self.held[k]]
            steps += [batch] if concatenated else [[one] for one in batch]
        return steps

    def sync(self, server: "Server", message: Message) -> list[Message]:
        replies: list[Message] = []
        self.longest = max(self.longest, int(message.numbers["batches"]))  # of every hello too, also after a mark
        if message.numbers["done"]:
            k = message.client
            weight = {"samples": message.numbers["weight"], "batches": message.numbers["batches"], "uniform": 1.0}
            self.done[k] = weight[self.options.weighting]
            replies = server.compute(self.due(server, None))
            if not message.numbers["left"]:
                self.finished.add(k)
            if not self._running():
                self._end_segment(server)
        return replies + self._gos(server)

    def left(self, server: "Server", client: int) -> list[Message]:
        """Go on without who left: its batches and its weight are in no further average of this round."""
        self.absent.add(client)
        self.held[client].clear()
        if client in self.order and client not in self.finished:
            self.order.remove(client)
            self.done.pop(client, None)
            server.arrived.pop(client, None)
        replies = server.compute(self.due(server, None))
        if not self._running():
            self._end_segment(server)
        return replies + self._gos(server)

    def _gos(self, server: "Server") -> list[Message]:
        running = self._running()
        learns = next(server.top.parameters(), None) is not None  # the uncut network leaves nothing to take turns at
        if learns and not self.server_copies and self.options.server_order == "client_major":
            running = running[:1]
        over = self.round == self.plan.rounds
        ready = sorted(server.waiting) if over else [k for k in running if k in server.waiting]
        return [server.go(k, give_back=self._give_back(server), stop=over) for k in ready]

    def _averages(self, round: int) -> bool:
        """Return whether the segments of a round end with an average of client models or server copies."""
        several = self.plan.num_clients > 1 and self.every > 0
        return several and (self.unit != "round" or (round + 1) % self.every == 0)

    def _apart(self, round: int) -> bool:
        """Return whether a round ends with clients that differ."""
        o = self.options
        return not self._averages(round) or o.private_clients or o.batch_norm == "local"

    def _give_back(self, server: "Server") -> int:
        return 0 if server.frozen else self.asks(self.round, server.may_freeze)

    def asks(self, round: int, may_freeze: bool) -> int:
        if round == self.plan.rounds:
            return 0
        # who is not drawn, or frozen in a later round, is asked as long as it changes
        always = may_freeze or self.options.participation < 1
        evaluated = 2 if self._apart(round) and (always or self.plan.evaluated(round)) else 0
        return evaluated + (1 if self._averages(round) and not self.options.private_clients else 0)

    @property
    def last_turn(self) -> int:
        return self.plan.rounds

    def _end_segment(self, server: "Server") -> None:
        over, frozen = all(k in self.finished for k in self.order), server.frozen
        if over:
            self._check_period()
            server.end_training()
        if self._averages(self.round) and self.done:
            if not self.options.private_clients and not frozen:
                server.average_clients(self.done, self.options.batch_norm)
            if self.server_copies:
                server.average_tops(self.done, self.options.batch_norm, reset=self.options.hand_over == "reset")
        self.done = {}
        if over:
            server.apart = self._apart(self.round)
            server.end_round()
            self.round, self.index, self.finished = self.round + 1, 0, set()
            self.absent -= server.waiting.keys()
            self.order = self._draw()
        server.on_mark(server)

    def _check_period(self) -> None:
        if self.unit == "batch" and self.every > self.longest > 0:
            raise BadInput(
                f"sync_every = {self.options.sync_every!r}: nobody's round has more than {self.longest} batches; "
                f"write {self.longest} batches or less, or rounds"
            )

    def rate(self, client: int) -> float:
        return 1.0

    def pace(self, client: int) -> int:
        return self.round

    def turn(self, client: int) -> int:
        return self.round

    def state(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "index": self.index,
            "finished": sorted(self.finished),
            "absent": sorted(self.absent),
            "order": self.order,
            "held": [message_tree(message) for held in self.held.values() for message in held],
            "done": [list(p) for p in self.done.items()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.round, self.index, self.finished = state["round"], state["index"], set(state["finished"])
        self.done = {int(k): float(weight) for k, weight in state["done"]}
        self.absent, self.order = set(state["absent"]), list(state["order"])
        self.held = {k: deque() for k in range(self.plan.num_clients)}
        for tree in state["held"]:
            message = message_of(tree)
            self.held[message.client].append(message)
