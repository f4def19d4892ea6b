"""The server's part of loss-based asynchronous training: the state, and the activations it stored, as they came."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .errors import BadInput
from .kept import packed_of, roles_tree
from .steps import train_step
from .streams import stream
from .wire import Message, Packed, unpack

if TYPE_CHECKING:
    from .server import Server

A, B, C = 0, 1, 2  # full exchange; activations alone; rest


def next_state(state: int, loss: float, remembered: float | None, options: Any) -> tuple[int, float | None]:
    """Return the next state and the loss to remember, from the finished round's state and its mean training loss.

    `options` as LossThresholdOptions; `remembered` is None before anything is. A loss that is not a number counts as moved.
    """
    if options.threshold_rule == "always_b_after_a":
        if state == A:
            return B, loss
        return (A if _moved(remembered, loss, options) else C), remembered
    if _moved(remembered, loss, options):
        return A, loss
    return (B if state == A else C), remembered


def _moved(remembered: float | None, loss: float, options: Any) -> bool:
    if remembered is None:
        return bool(options.threshold < math.inf)
    change = remembered - loss if options.threshold_of == "fall" else abs(remembered - loss)
    return math.isnan(change) or change >= options.threshold * (remembered if options.threshold_relative else 1.0)


class Stored:
    """Decides the state for all clients at the end of a round, and trains the top on stored activations while they rest.

    Activations are kept as they were sent, after the codec. A client that has none stored (it was not drawn, or is new) is
    asked for them when it comes in a round of rest.
    """

    may_freeze: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options
        self.now, self.rested = A, 0
        self.max_bytes = math.inf  # of one client; a server of other processes sets it
        self.remembered: float | None = None
        self.store: dict[tuple[int, int], Packed] = {}
        self.stored: Counter[int] = Counter()  # bytes by client
        self.came: set[int] = set()  # whose activations came in this round
        self.handlers = {"smashed": self.handle}

    @property
    def frozen(self) -> bool:
        """Whether clients stay as they are in this round."""
        return self.now != A

    def orders(self, client: int) -> dict[str, float]:
        """Return what a go tells a client."""
        rests = self.now == C and client not in self.came and any(k == client for k, _ in self.store)
        return {"state": float(B if self.now == C and not rests else self.now), "rest": float(rests)}

    def handle(self, server: "Server", messages: list[Message]) -> list[Message]:
        """Train on what arrives, and keep it."""
        for message in messages:
            self.came.add(message.client)
            packed = message.packed
            assert packed is not None
            self._reserve(message.client, message.step, packed)
            self.store[message.client, message.step] = replace(packed, message=replace(packed.message, reply="none"))
        return train_step(server, messages)

    def _reserve(self, client: int, step: int, packed: Packed) -> None:
        """Count the bytes of a client's stored activations; raises BadInput if they would be more than `max_bytes`."""
        old = self.store.get((client, step))
        total = self.stored[client] + packed.nbytes - (0 if old is None else old.nbytes)
        if total > self.max_bytes:
            raise BadInput(f"its stored activations would take {total:.3g} bytes; at most {self.max_bytes:.3g} are kept")
        self.stored[client] = total

    def end_round(self, server: "Server") -> None:
        """Train on the store if the clients rested, and decide the next state."""
        plan, o = server.schedule.plan, self.options
        server.meter.grown("server", server.owned())
        if self.now == C:
            keys = sorted(key for key in self.store if key[0] not in self.came)
            for i in torch.randperm(len(keys), generator=stream(plan.seed, "stored", round=server.schedule.round)).tolist():
                packed = self.store[keys[i]]
                train_step(server, [unpack(packed, server.codecs[packed.message.client])])
        server.extra = {"state": float(self.now)}
        coming = server.schedule.round + 1
        self.rested = self.rested + 1 if self.now == C else 0
        found, self.remembered = next_state(self.now, server.record()["loss"], self.remembered, o)
        if coming < o.first_full or coming >= plan.rounds - o.last_full or (found == C and 0 < o.max_rest <= self.rested):
            found = A
        if found != C:
            self.store = {}
            self.stored.clear()
        self.now, self.came = found, set()

    def owned(self) -> Iterator[Tensor]:
        return (part for packed in self.store.values() for role in packed.roles for part in role.parts)

    def state(self) -> dict[str, Any]:
        store = [[*key, roles_tree(packed)] for key, packed in self.store.items()]
        return {
            "now": self.now,
            "rested": self.rested,
            "remembered": self.remembered,
            "store": store,
            "came": sorted(self.came),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.now, self.rested, self.remembered = state["now"], state["rested"], state["remembered"]
        self.came = set(state["came"])
        self.store = {
            (client, step): packed_of(Message("smashed", {}, {}, client, step, "none"), roles)
            for client, step, roles in state["store"]
        }
        self.stored = Counter()
        for (client, _), packed in self.store.items():
            self.stored[client] += packed.nbytes
