"""Vanilla split learning's order: clients take turns, and the client model goes from one to the next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ..wire import Message
from .base import Plan

if TYPE_CHECKING:
    from ..server import Server


@dataclass(frozen=True)
class RelayOptions:
    """How the client model changes hands."""

    hand_over: Annotated[
        Literal["reset", "carry", "local", "shared"],
        "client optimizer state when the model changes hands; shared: one model object, no traffic",
    ] = "reset"


class Relay:
    """Clients take turns of one pass over their data, in the order of their numbers (Gupta & Raskar, arXiv 1810.06060).

    `hand_over` reset, carry, local: the client model travels through the server. shared: it is one object and
    nothing travels (as in the code of arXiv 2601.19261). Weights come back only when the next turn is somebody else's,
    or, metered apart, when a round ends that is evaluated.
    """

    Options: ClassVar[type] = RelayOptions
    server_copies = False

    def __init__(self, options: RelayOptions, plan: Plan) -> None:
        self.options, self.plan = options, plan
        self.round, self.active = 0, 0
        self.absent: set[int] = set()

    def due(self, server: "Server", message: Message | None) -> list[list[Message]]:
        return [] if message is None else [[message]]

    def sync(self, server: "Server", message: Message) -> list[Message]:
        k = message.client
        if message.numbers["done"]:
            server.version += k in server.arrived
            for arrived in (server.arrived, server.own):
                if k in arrived:
                    server.weights, server.holder = arrived.pop(k), k
            self._pass_on(server)
            server.on_mark(server)
        return self._gos(server)

    def left(self, server: "Server", client: int) -> list[Message]:
        """Pass the turn on if it was the one of who left."""
        self.absent.add(client)
        if client == self.active:
            self._pass_on(server)
        return self._gos(server)

    def _pass_on(self, server: "Server") -> None:
        while self.round < self.plan.rounds:
            self.active = (self.active + 1) % self.plan.num_clients
            if self.active == 0:
                server.end_training()
                server.end_round()
                self.round += 1
                self.absent -= server.waiting.keys()
            if self.active not in self.absent:
                return

    def _gos(self, server: "Server") -> list[Message]:
        over = self.round == self.plan.rounds
        ready = [k for k in sorted(server.waiting) if over or k == self.active]
        return [server.go(k, give_back=self._give_back(server), stop=over) for k in ready]

    def _give_back(self, server: "Server") -> int:
        return 0 if server.frozen else self.asks(self.round, server.may_freeze)

    def asks(self, round: int, may_freeze: bool) -> int:
        if self.options.hand_over == "shared" or round == self.plan.rounds:
            return 0
        if self.plan.num_clients > 1:
            return 1
        # who may be frozen in a later round is asked as long as it changes
        return 2 if self.plan.evaluated(round) or may_freeze else 0

    @property
    def last_turn(self) -> int:
        return self.plan.rounds

    def rate(self, client: int) -> float:
        return 1.0

    def pace(self, client: int) -> int:
        return self.round

    def turn(self, client: int) -> int:
        return self.round

    def state(self) -> dict[str, Any]:
        return {"round": self.round, "active": self.active, "absent": sorted(self.absent)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.round, self.active, self.absent = state["round"], state["active"], set(state["absent"])
