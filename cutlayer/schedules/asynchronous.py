"""SplitFed without a barrier: client models are merged as they arrive, the less the staler they are."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..averaging import State, add_changes, mix
from ..kept import message_of, message_tree
from ..wire import Message
from .base import Plan

if TYPE_CHECKING:
    from ..server import Server

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class AsynchronousOptions:
    """How arriving models are merged, and what the server grants those that are late or fast."""

    hand_over: Annotated[Literal["local", "reset"], "optimizer state when merged weights arrive: kept, or cleared"] = "local"
    server_copies: Annotated[bool, "a copy of the top for each client, merged with it and by the same weight; else one"] = False
    merge: Annotated[Literal["fedasync", "fedbuff"], "every arrival mixed in at once, or buffered changes together"] = (
        "fedasync"
    )
    mixing: Annotated[Share, "weight of an arriving model (fedasync)"] = 0.6
    buffer_size: Annotated[Annotated[int, Field(ge=1)], "arrivals that are merged together (fedbuff)"] = 3
    buffer_rate: Annotated[Annotated[float, Field(ge=0)], "step of a merge along the mean change (fedbuff)"] = 1.0
    buffer_norm: Annotated[
        Literal["count", "weights"], "the mean divides by arrivals, or by their staleness weights (fedbuff)"
    ] = "count"
    restart: Annotated[
        Literal["at_merge", "at_once"],
        "a client whose change lies in the buffer waits for the merge, or goes on from the old model",
    ] = "at_merge"
    staleness: Annotated[
        Literal["constant", "polynomial", "hinge"],
        "weight of what is t versions old: 1, (1+t)^-a, or 1 up to b and then 1/(a(t-b)+1)",
    ] = "polynomial"
    staleness_a: Annotated[Annotated[float, Field(ge=0)], "a of polynomial and hinge"] = 0.5
    staleness_b: Annotated[Count, "b of hinge"] = 4
    max_staleness: Annotated[Count, "older arrivals are dropped and the client is sent the newest model; 0: none is"] = 0
    server_rate: Annotated[
        Literal["constant", "staleness"],
        "learning rate of a server step: as it is, or weighted by the steps since the client's last",
    ] = "constant"
    fairness: Annotated[Count, "server steps that a client may be ahead of the slowest that is active; 0: any number"] = 0


class Asynchronous:
    """FedAsync (Xie et al., arXiv 1903.03934) or FedBuff (Nguyen et al., arXiv 2106.06639) of client models over one top, or copies.

    Activations are computed in the order of their arrival. A client's turn is a pass over its data; a round is over after as many
    turns as there are clients, whoever took them, and the last one when nobody is in the middle of a turn; what the buffer holds then
    is merged. Statistics of BatchNorm are merged as values, counters by the largest.
    """

    Options: ClassVar[type] = AsynchronousOptions
    needs_start: ClassVar[bool] = True

    def __init__(self, options: AsynchronousOptions, plan: Plan) -> None:
        self.options, self.plan, self.server_copies = options, plan, options.server_copies
        self.round, self.turns = 0, 0  # turns of this round
        self.absent: set[int] = set()
        self.taken = dict.fromkeys(range(plan.num_clients), 0)  # turns
        self.steps = dict.fromkeys(range(plan.num_clients), 0)
        self.last = dict.fromkeys(range(plan.num_clients), 0)  # all steps when this client's last was over
        self.since = dict.fromkeys(range(plan.num_clients), 0)  # steps of others between its last two
        self.held: deque[Message] = deque()
        self.bases: dict[int, tuple[int, int, State]] = {}  # what a client started its turn from: version, round, weights
        self.buffer: list[tuple[int, float, State, State]] = []  # client, weight, from what, to what
        self.histogram: dict[int, int] = {}

    def weight(self, staleness: int) -> float:
        """Return the weight of something that is `staleness` versions or steps old."""
        o = self.options
        if o.staleness == "polynomial":
            return float((1 + staleness) ** -o.staleness_a)
        late = max(0, staleness - o.staleness_b)
        return 1 / (o.staleness_a * late + 1) if o.staleness == "hinge" else 1.0

    def rate(self, client: int) -> float:
        """Return the factor of the learning rate of a server step that a client's activations cause."""
        return self.weight(self.since[client]) if self.options.server_rate == "staleness" else 1.0

    def pace(self, client: int) -> int:
        """Return the round that the learning rate of a server step follows: with a top of its own that of the client's turn."""
        return self.bases[client][1] if self.server_copies and client in self.bases else self.round

    def turn(self, client: int) -> int:
        """Return which pass over its data a client is in: in one round it may take two."""
        return self.taken[client]

    def due(self, server: "Server", message: Message | None) -> list[list[Message]]:
        if message is not None:
            self.held.append(message)
        steps = []
        while (ready := self._next(server)) is not None:
            self.held.remove(ready)
            k, total = ready.client, sum(self.steps.values())
            self.since[k], self.last[k] = total - self.last[k], total + 1
            self.steps[k] += 1
            steps.append([ready])
        return steps

    def _next(self, server: "Server") -> Message | None:
        slowest = min((self.steps[k] for k in server.running - server.marking.keys()), default=0)
        ahead = self.options.fairness or float("inf")
        return next((m for m in self.held if self.steps[m.client] - slowest < ahead or m.client not in server.running), None)

    def sync(self, server: "Server", message: Message) -> list[Message]:
        k, replies = message.client, []
        self.absent.discard(k)
        if message.numbers["done"]:
            replies = server.compute(self.due(server, None))
            if self.round < self.plan.rounds:
                self._arrive(server, k)
                self.turns, self.taken[k] = self.turns + 1, self.taken[k] + 1
                self._end_round(server)
            if not server.running:
                server.on_mark(server)
        return replies + self._gos(server)

    def left(self, server: "Server", client: int) -> list[Message]:
        """Go on without who left; what it has handed in stays in the buffer."""
        self.absent.add(client)
        self.bases.pop(client, None)
        self.held = deque(message for message in self.held if message.client != client)
        replies = server.compute(self.due(server, None))
        self._merge_buffer(server)
        self._end_round(server)
        return replies + self._gos(server)

    def _end_round(self, server: "Server") -> None:
        last = self.round == self.plan.rounds - 1
        if self.round < self.plan.rounds and self.turns >= self._there() and not (last and self.bases):
            if last:
                self._merge_buffer(server, whole=False)
            server.extra |= {f"staleness_{t}": float(n) for t, n in sorted(self.histogram.items())}
            server.end_training()
            server.end_round()
            self.round, self.turns = self.round + 1, 0

    def _gos(self, server: "Server") -> list[Message]:
        over = self.round == self.plan.rounds
        buffered = {j for j, *_ in self.buffer} if self.options.restart == "at_merge" and not over else set()
        ready = [j for j in server.waiting if j not in buffered]
        midway = [j for j in ready if j in self.bases]
        new = sorted((j for j in ready if j not in self.bases), key=lambda j: (self.taken[j], j))
        # no turn begins whose end nobody would wait for
        left = (self.plan.rounds - self.round) * self._there() - self.turns - len(self.bases)
        return [self._go(server, j, over) for j in sorted(midway + (new if over else new[: max(0, left)]))]

    def _there(self) -> int:
        return self.plan.num_clients - len(self.absent)

    def _go(self, server: "Server", k: int, over: bool) -> Message:
        begins = k not in self.bases  # else it only said hello again in the middle of a turn
        if begins and not over:
            self.bases[k] = server.version, self.round, self._global(server)
            if self.server_copies:
                server.copies[k].load_state_dict(server.top.state_dict())
                server.anchors.pop(k, None)
                if self.options.hand_over == "reset":
                    server.optimizers[k].state.clear()
        # whoever has trained, or was not there when others did, has other weights than the merged ones
        weights = begins and (self.taken[k] > 0 or server.version > 0)
        version, pace, _ = self.bases.get(k, (server.version, self.round, {}))
        return server.go(k, pace=pace, give_back=self.asks(self.round), stop=over, weights=weights, version=version)

    def asks(self, round: int, may_freeze: bool = False) -> int:
        return 1

    @property
    def last_turn(self) -> int:
        return self.plan.rounds * self.plan.num_clients  # all of them may be one client's

    def _global(self, server: "Server") -> dict[str, Tensor]:
        top = {f"/{name}": t.clone() for name, t in server.top.state_dict().items()} if self.server_copies else {}
        return dict(server.weights) | top

    def _arrive(self, server: "Server", k: int) -> None:
        version, _, base = self.bases.pop(k)
        mine: dict[str, Tensor] = server.arrived.pop(k)
        if self.server_copies:
            mine |= {f"/{name}": t.clone() for name, t in server.copies[k].state_dict().items()}
        stale, o = server.version - version, self.options
        self.histogram[stale] = self.histogram.get(stale, 0) + 1
        if o.max_staleness and stale > o.max_staleness:
            return
        if o.merge == "fedasync":
            self._become(server, mix(self._global(server), mine, o.mixing * self.weight(stale)))
            return
        self.buffer.append((k, self.weight(stale), base, mine))
        self._merge_buffer(server)

    def _merge_buffer(self, server: "Server", whole: bool = True) -> None:
        """Merge the buffer if it is full, or if all who are there wait for that, or whatever it holds if need not be `whole`."""
        o = self.options
        enough = min(o.buffer_size, self._there()) if o.restart == "at_merge" else o.buffer_size
        if len(self.buffer) >= (enough if whole else 1):
            changes = [(weight, old, new) for _, weight, old, new in self.buffer]
            total = sum(weight for weight, _, _ in changes) if o.buffer_norm == "weights" else float(len(changes))
            self.buffer = []
            self._become(server, add_changes(self._global(server), changes, o.buffer_rate, total))

    def _become(self, server: "Server", merged: Mapping[str, Tensor]) -> None:
        server.weights = {name: t for name, t in merged.items() if not name.startswith("/")}
        if self.server_copies:
            server.top.load_state_dict({name[1:]: t for name, t in merged.items() if name.startswith("/")})
        server.version, server.holder = server.version + 1, -1

    def state(self) -> dict[str, Any]:
        tables = {name: list(getattr(self, name).items()) for name in ("taken", "steps", "last", "since", "bases", "histogram")}
        return {
            "round": self.round,
            "turns": self.turns,
            "absent": sorted(self.absent),
            "buffer": self.buffer,
            **tables,
            "held": [message_tree(m) for m in self.held],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.round, self.turns, self.absent = state["round"], state["turns"], set(state["absent"])
        self.held = deque(message_of(tree) for tree in state["held"])
        self.buffer = [(k, w, old, new) for k, w, old, new in state["buffer"]]
        for name in ("taken", "steps", "last", "since", "histogram"):
            setattr(self, name, dict(state[name]))
        self.bases = {k: (version, round, base) for k, (version, round, base) in state["bases"]}
