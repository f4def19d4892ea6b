"""The server: a function from a message to the replies now due; it never blocks."""

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from .averaging import average, batch_norm_entries, drift
from .errors import BadInput
from .memory import codec_tensors, owned_tensors, tensors_in
from .meter import Meter
from .schedules.base import Schedule
from .steps import finish_step, train_step
from .task import Task
from .training import Training
from .wire import Codecs, Message

Handler = Callable[["Server", list[Message]], list[Message]]


class ServerPart(Protocol):
    """What a method needs at the server: handlers for messages, orders in every go, something at the end of a round.

    `frozen` says that clients stay as they are in the round under way, so their weights need not travel, `may_freeze` that there are
    such rounds. One that names it as its base has what most parts do: no orders, nothing at the end of a round, nothing to keep.
    """

    handlers: Mapping[str, Handler]
    may_freeze: ClassVar[bool] = False

    @property
    def frozen(self) -> bool:
        return False

    def orders(self, client: int) -> Mapping[str, float]:
        return {}

    def end_round(self, server: "Server") -> None:
        return

    def owned(self) -> Iterable[Tensor]:
        return ()

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        return


class Server:
    """Owns the tops and their optimizers; the schedule says what is computed now and who goes on (docs/architecture.md).

    `top` is what is evaluated: the one that trains, or the average of `copies`, one per client. `weights` are the clients'
    newest weights by <module>.<parameter>, `version` their number, `holder` who made them; `own` is what single clients hold
    of their own, `arrived` what has come for an average that is not made yet. `on_round(server)` runs when a round is
    over, before anybody goes on; `on_mark(server)` when nothing is under way.
    """

    def __init__(
        self,
        top: nn.Module,
        schedule: Schedule,
        training: Training,
        task: Task,
        *,
        meter: Meter | None = None,
        part: ServerPart | None = None,
        codecs: Mapping[int, Codecs] = {},
        copy_input: bool = False,
        on_round: Callable[["Server"], None] = lambda server: None,
        on_mark: Callable[["Server"], None] = lambda server: None,
    ) -> None:
        self.top, self.schedule, self.training, self.task = top, schedule, training, task
        self.meter = meter or Meter()
        self.handlers: Mapping[str, Handler] = {
            "smashed": train_step,
            "feature_grad": finish_step,
            **(part.handlers if part else {}),
        }
        self.part, self.codecs, self.extra = part, codecs, dict[str, float]()
        self.copy_input, self.on_round, self.on_mark = copy_input, on_round, on_mark
        num_copies = schedule.plan.num_clients if schedule.server_copies else 0
        self.copies = {k: copy.deepcopy(top) for k in range(num_copies)}
        self.optimizers = {k: training.optimizer(module) for k, module in (self.copies or {-1: top}).items()}
        self.anchors: dict[int, list[Tensor]] = {}
        self.weights: dict[str, Tensor] = {}
        self.slots: dict[str, Tensor] = {}
        self.arrived: dict[int, dict[str, Tensor]] = {}
        self.own: dict[int, dict[str, Tensor]] = {}
        self.apart = False
        self.version, self.holder = 0, -1
        self.sampled: dict[int, int] = {}
        self.records: dict[int, dict[str, float]] = {}
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.waiting: dict[int, Message] = {}
        self.marking: dict[int, Message] = {}
        self.running: set[int] = set()
        self.queue: deque[list[Message]] = deque()
        self.uncomputed: Counter[int] = Counter()  # training messages of each client that wait for their turn
        self.open: dict[int, Any] = {}  # exchanges under way, with what their handler keeps

    def handle(self, message: Message) -> list[Message]:
        """Return the replies now due, addressed by their `client`; raises BadInput on a kind nobody handles."""
        if message.kind == "sync":
            replies = self._sync(message)
        elif message.kind == "left":  # when nothing is under way
            self.waiting.pop(message.client, None)
            replies = self.schedule.left(self, message.client)
            self.on_mark(self)
        elif message.kind == "mark":
            self.marking[message.client] = message
            replies = self.compute(self.schedule.due(self, None))
        elif message.kind not in self.handlers:
            raise BadInput(f"a message of kind {message.kind!r} arrived; this server handles {', '.join(self.handlers)}")
        elif message.client in self.open:  # the exchange under way goes straight on
            replies = self.handlers[message.kind](self, [message]) + self.compute([])
        else:
            self.uncomputed[message.client] += 1
            replies = self.compute(self.schedule.due(self, message))
        return replies + self._mark()

    def compute(self, steps: Iterable[list[Message]]) -> list[Message]:
        """Take the steps in order and return their replies; a top finishes an open exchange before its next step."""
        self.queue.extend(steps)
        replies: list[Message] = []
        for step in list(self.queue):
            mine = step[0].client
            if self.open and (not self.copies or mine in self.open):
                continue
            self.queue.remove(step)
            for message in step:
                self.uncomputed[message.client] -= self.uncomputed[message.client] > 0  # those of a mark were not counted
            replies += self.handlers[step[0].kind](self, step)
        return replies

    def _mark(self) -> list[Message]:
        """Answer those who wait for a mark once everybody does who is not between turns, and write it."""
        if not self.marking or self.running - set(self.marking) or self.queue or self.open:
            return []
        self.on_mark(self)
        answered, self.marking = self.marking, {}
        return [Message("mark", client=k, step=message.step) for k, message in sorted(answered.items())]

    def _sync(self, message: Message) -> list[Message]:
        k = message.client
        self.waiting[k] = message
        self.running.discard(k)
        records = {name.partition("/")[2]: value for name, value in message.numbers.items() if name.startswith("record/")}
        if records:
            self.records[k] = records
        for into, role in ((self.arrived, "weights/"), (self.own, "evaluation/")):
            found = {name.removeprefix(role): tensor for name, tensor in message.tensors.items() if name.startswith(role)}
            if found:
                into[k] = found
        if k in self.arrived:
            self.slots = {role: t for role, t in message.tensors.items() if role.startswith("optimizer/")}
        return self.schedule.sync(self, message)

    def end_training(self) -> None:
        """Let the method do what it does when a round's batches are over; comes before any average."""
        if self.part:
            self.part.end_round(self)

    def end_round(self) -> None:
        """Tell whoever keeps records that a round is over, and begin new sums."""
        self.on_round(self)
        self.records, self.totals, self.counts, self.extra = {}, {}, {}, {}

    @property
    def frozen(self) -> bool:
        return self.part is not None and self.part.frozen

    @property
    def may_freeze(self) -> bool:
        return self.part is not None and self.part.may_freeze

    def go(
        self,
        client: int,
        *,
        give_back: int,
        stop: bool,
        pace: int | None = None,
        weights: bool | None = None,
        version: int | None = None,
    ) -> Message:
        """Return the message that lets a waiting client go on; `weights` None: it brings them if the client's are older.

        It tells the client's turn, which its data follow; `pace` is everybody's, which learning rates follow, the turn if None; `version`
        is that of the weights it trains from, the newest if None.
        """
        sync = self.waiting.pop(client)
        tensors: dict[str, Tensor] = {}
        if not stop:
            self.running.add(client)
            older = sync.numbers["version"] < self.version and self.holder != client
            if older if weights is None else weights:
                tensors = {f"weights/{name}": t for name, t in self.weights.items()} | self.slots
        turn = self.schedule.turn(client)
        numbers: dict[str, float] = {"stop": stop, "round": turn, "return": give_back}
        numbers["version"] = self.version if version is None else version
        numbers["pace"] = turn if pace is None else pace
        numbers |= self.part.orders(client) if self.part else {}
        return Message("go", tensors, {name: float(value) for name, value in numbers.items()}, client, sync.step)

    def average_clients(self, by: Mapping[int, float], batch_norm: str) -> None:
        """Make the weighted average of what has arrived the clients' newest weights."""
        states = [self.arrived.pop(k) for k in sorted(by)]
        self.weights = average(states, [by[k] for k in sorted(by)], pooled=batch_norm == "pooled")
        self.note("client_drift", drift(states, self.weights), 1)
        self.version, self.holder, self.slots = self.version + 1, -1, {}

    def average_tops(self, by: Mapping[int, float], batch_norm: str, reset: bool) -> None:
        """Make the weighted average of some clients' copies everybody's; with local BatchNorm each copy keeps its own."""
        clients = sorted(by)
        merged = average(
            [self.copies[k].state_dict() for k in clients], [by[k] for k in clients], pooled=batch_norm == "pooled"
        )
        kept = batch_norm_entries(list(merged)) if batch_norm == "local" else set()
        self.top.load_state_dict(merged)
        for k, module in self.copies.items():
            module.load_state_dict({name: t for name, t in merged.items() if name not in kept}, strict=False)
            if reset:
                self.optimizers[k].state.clear()
        self.anchors = {}

    def top_of(self, client: int) -> nn.Module:
        return self.copies.get(client, self.top)

    def step(self, client: int) -> None:
        """Take one step of a client's top with the gradients that are there."""
        optimizer = self.optimizers[client if self.copies else -1]
        self.training.set_round(optimizer, self.schedule.pace(client), self.schedule.rate(client))
        if self.training.prox and self.copies and client not in self.anchors:  # one top for all receives no weights
            self.anchors[client] = [p.detach().clone() for p in self.top_of(client).parameters()]
        self.training.step(optimizer, self.anchors.get(client, ()))

    def models(self) -> list[tuple[int, dict[str, Tensor], nn.Module]]:
        """Return the compositions to evaluate: client, its weights (none: as it was built), its top; one where all are alike."""
        clients = sorted(self.own) or sorted(self.copies)
        if not self.apart or not clients:  # without copies or weights of their own, as local BatchNorm where there is none
            return [(0, self.weights, self.top)]
        return [(k, {**self.weights, **self.own.get(k, {})}, self.top_of(k)) for k in clients]

    def note(self, name: str, value: Tensor, samples: int) -> None:
        """Add a batch mean to the sums of this round, on the device."""
        self.totals[name] = self.totals.get(name, 0) + value.detach().float() * samples
        self.counts[name] = self.counts.get(name, 0) + samples

    def record(self) -> dict[str, float]:
        """Return the means of this round so far."""
        return {name: float(total) / self.counts[name] for name, total in self.totals.items()} | self.extra

    def samples(self, message: Message) -> bool:
        """Return whether a step is measured: the first of each client in each round."""
        first = self.sampled.get(message.client) != self.schedule.round
        self.sampled[message.client] = self.schedule.round
        return first

    def owned(self) -> Iterator[Tensor]:
        """Yield what it keeps from step to step for training, without the clients' weights that wait for a hand-over."""
        for k, optimizer in self.optimizers.items():
            yield from owned_tensors([self.top_of(k)], optimizer)
        yield from (*tensors_in(self.anchors), *(t for codecs in self.codecs.values() for t in codec_tensors(codecs)))
        yield from self.part.owned() if self.part else ()

    def state(self) -> dict[str, Any]:
        return {
            "top": self.top.state_dict(), "copies": [[k, m.state_dict()] for k, m in self.copies.items()],
            "optimizers": [[k, o.state_dict()] for k, o in self.optimizers.items()], "schedule": self.schedule.state(),
            "sampled": list(self.sampled.items()), "anchors": list(self.anchors.items()), "weights": self.weights, "slots": self.slots,
            "arrived": list(self.arrived.items()), "own": list(self.own.items()), "apart": self.apart,
            "version": self.version, "holder": self.holder, "waiting": sorted(self.waiting), "records": list(self.records.items()),
            "totals": self.totals, "counts": self.counts, "part": self.part.state() if self.part else {},
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        for under_way in (self.waiting, self.marking, self.running, self.queue, self.open, self.uncomputed):
            under_way.clear()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.extra = {}
        self.top.load_state_dict(state["top"])
        for k, copied in state["copies"]:
            self.copies[k].load_state_dict(copied)
        for k, optimizer in state["optimizers"]:
            self.optimizers[k].load_state_dict(optimizer)
        self.schedule.load(state["schedule"])
        self.anchors, self.weights, self.slots = dict(state["anchors"]), dict(state["weights"]), dict(state["slots"])
        self.arrived, self.own, self.apart = dict(state["arrived"]), dict(state["own"]), state["apart"]
        self.version, self.holder = state["version"], state["holder"]
        self.records = {k: dict(record) for k, record in state["records"]}
        self.sampled = dict(state["sampled"])
        self.totals, self.counts = dict(state["totals"]), dict(state["counts"])
        if self.part:
            self.part.load(state["part"])
