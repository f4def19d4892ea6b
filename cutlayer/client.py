"""A data owner: its modules, its optimizer, and the only places where something leaves it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .averaging import batch_norm_entries
from .cut import Smashed, unharmed
from .errors import BadInput
from .memory import codec_tensors, owned_tensors
from .meter import Meter
from .reducing import Reducer, spread
from .slots import load_slots, slots
from .task import Batch, Task
from .training import Training, parameters_of
from .wire import Codecs, Collect, Exchange, Message, Reply

Record = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Smashed, Batch, Task], Tensor]


class Batches(NamedTuple):
    """A client's batches: an iterator by (round, first step), how many a round has, and how many a pass over the data."""

    iterate: Callable[[int, int], Iterator[Batch]]
    per_round: int
    per_epoch: int

    def __call__(self, round: int, first: int) -> Iterator[Batch]:
        return self.iterate(round, first)


class Client:
    """One data owner; a method reaches its modules through forward, loss, uplink and update only.

    `weight` is its number of samples; `hand_over` says what becomes of its optimizer state when new weights arrive:
    reset | carry | local, or shared, where all clients are one model and nothing is handed over. `keeps_norm`: its BatchNorm
    is its own. `turn` is the number of steps between syncs, 0 for a round.
    """

    def __init__(
        self,
        id: int,
        modules: Mapping[str, nn.Module],
        training: Training,
        task: Task,
        *,
        meter: Meter | None = None,
        weight: int = 0,
        hand_over: str = "reset",
        optimizer: torch.optim.Optimizer | None = None,
        sample_step: int = -1,
        keeps_norm: bool = False,
        turn: int = 0,
    ) -> None:
        self.id, self.round, self.step, self.version = id, 0, 0, 0
        self.modules, self.travels = nn.ModuleDict(modules), list(modules)
        self.training, self.task, self.weight, self.hand_over = training, task, weight, hand_over
        self.meter = meter or Meter()
        self.sample_step, self.keeps_norm, self.turn = sample_step, keeps_norm, turn
        self.anchor: list[Tensor] = []
        self.reducer: Reducer | None = None  # merges the rows of a batch before they are sent
        self.codecs: Codecs = {}  # its end's
        self.owed: list[tuple[str, int]] = []  # forward passes whose backward pass is still to come
        self.losses: dict[str, Loss] = {}
        self.give_back, self.orders = 0, dict[str, float]()
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.optimizer = optimizer or training.optimizer(self.modules)

    def add(
        self, name: str, module: nn.Module, loss: Loss, *, lr: float | None = None, travels: bool = True, trained: bool = True
    ) -> None:
        """Add a module beside the bottom, trained with it or not; where clients share one model, the first one's is used by all."""
        self.losses[name] = loss
        if name in self.modules:
            return
        if travels:
            self.travels.append(name)
        self.modules[name] = module
        if not trained:
            return
        base_lr = lr if lr is not None else self.optimizer.param_groups[0]["base_lr"]
        self.optimizer.add_param_group({"params": list(module.parameters()), "base_lr": base_lr, "lr": base_lr})

    def forward(self, batch: Batch, *, graph: bool = True, statistics: bool = True, draws: str = "bottom") -> Smashed:
        """Return the smashed data (N, *cut) of a batch, if so wanted without a graph, or without a trace in running statistics."""
        with self._pass("bottom", graph, statistics, draws):
            z = Smashed.through(self.modules["bottom"], batch)
        self._spent("bottom", len(batch.y), graph)
        return z

    def loss(self, name: str, z: Smashed, batch: Batch, *, graph: bool = True, statistics: bool = True) -> Tensor:
        """Return the loss of an added module on z, if so wanted without a graph, or without a trace in running statistics."""
        with self._pass(name, graph, statistics):
            loss = self.losses[name](self.modules[name], z, batch, self.task)
        self._spent(name, len(batch.y), graph)
        return loss

    def predict(self, name: str, z: Smashed, batch: Batch) -> Tensor:
        """Return what an added module says of z and the targets, without a graph and without a trace in running statistics."""
        with self._pass(name, graph=False, statistics=False):
            output = unharmed(z.main, lambda main: self.modules[name](main, batch.y))
        self._spent(name, len(batch.y), False)
        return output

    def gradient(self, name: str, z: Smashed, batch: Batch) -> dict[str, Tensor]:
        """Return what an added module's loss says of the gradient at the cut, by role; nothing of the module moves."""
        leaves = {role: tensor.detach() for role, tensor in z.tensors("cut_grad").items() if tensor.is_floating_point()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        at = Smashed(leaves["cut_grad"], {n: leaves.get(f"cut_grad/{n}", t) for n, t in z.others.items()})
        with self._pass(name, statistics=False):
            loss = self.losses[name](self.modules[name], at, batch, self.task)
        with self.meter.phase("client_backward", self.id):
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        self._spent(name, len(batch.y), False)
        self.meter.spend(str(self.id), name, len(batch.y), 2)
        return {role: grad for role, grad in zip(leaves, grads, strict=True) if grad is not None}

    def _pass(self, name: str, graph: bool = True, statistics: bool = True, draws: str = "") -> ExitStack:
        stack = ExitStack()
        stack.enter_context(self.meter.phase("client_forward", self.id))
        how = self.training.computing(self.modules[name], draws or name, self.id, self.round, self.step, graph, statistics)
        stack.enter_context(how)
        return stack

    def _spent(self, part: str, samples: int, backward: bool) -> None:
        self.meter.spend(str(self.id), part, samples)
        if backward:
            self.owed.append((part, samples))

    def uplink(self, z: Smashed, batch: Batch, *, gradient: bool = True, later: bool = False) -> Exchange[Message | None]:
        """Send z, detached, and obtain the gradient at the cut, or nothing if `gradient` is False or it is to be collected later.

        With labels it is one message; a client that has a tail keeps them, gets features back, and sends their gradient
        (the tail's own gradients wait for `update`).
        """
        reply: Reply = "none" if not gradient else "later" if later else "wait"
        tensors, y, back = z.detach().tensors("smashed"), batch.y, None
        if self.reducer is not None:
            tensors, y, back = self.reducer.reduce(z, y, self.task.num_classes)
        if "tail" not in self.modules:
            answer = yield from self._ask("smashed", {**tensors, "labels": y}, reply)
            return spread(answer, back)
        answer = yield from self._ask("smashed", tensors, "wait", open=True)
        assert answer is not None
        features = answer.tensors["features"].requires_grad_()
        with self._pass("tail"):
            loss = self.task.loss(self.modules["tail"](features.clone()), y)  # a tail may begin in place, as a leaf must not
        with self.meter.phase("client_backward", self.id):
            loss.backward()
        self.meter.spend(str(self.id), "tail", len(y), 3)
        self.note({"loss": loss.detach()})
        assert features.grad is not None
        answer = yield from self._ask("feature_grad", {"feature_grad": features.grad}, reply)
        return spread(answer, back)

    def collect(self, step: int) -> Exchange[Message]:
        """Obtain the reply to what was sent in a step of this turn with `later`, waiting for it if need be."""
        begin = self.meter.now()
        answer = yield Collect(step)
        self.meter.seconds["wait"] += self.meter.now() - begin
        assert answer is not None
        return answer

    def probe(self, z: Smashed, batch: Batch, *, learn: bool, more: bool) -> Exchange[Tensor]:
        """Obtain the server's loss on z, a number; it learns from what it was told to `learn` from when no `more` probes come."""
        tensors = {**z.detach().tensors("smashed"), "labels": batch.y}
        answer = yield from self._ask("probe", tensors, "wait", open=more, learn=learn)
        assert answer is not None
        return answer.tensors["loss"]

    def _ask(
        self, kind: str, tensors: dict[str, Tensor], reply: Reply, open: bool = False, **numbers: float
    ) -> Exchange[Message | None]:
        begin = self.meter.now()
        answer = yield Message(kind, tensors, numbers, self.id, self.step, reply, open)
        if reply == "wait":
            self.meter.seconds["wait"] += self.meter.now() - begin
        return answer

    def update(
        self,
        loss: Tensor | None = None,
        z: Smashed | None = None,
        cut_grad: Mapping[str, Tensor] | None = None,
        times: int = 1,
    ) -> None:
        """Backward from the local loss and from the gradient at the cut in one pass, then ONE optimizer step.

        `cut_grad` holds the role cut_grad and cut_grad/<name>, as the server sent them; `times` repeats the step.
        """
        roots = [] if loss is None else [loss]
        grads: list[Tensor | None] = [None] * len(roots)
        if z is not None and cut_grad is not None:
            for role, tensor in z.tensors("cut_grad").items():
                if role in cut_grad and tensor.requires_grad:
                    roots.append(tensor)
                    grads.append(cut_grad[role].to(tensor.dtype))
        with self.meter.phase("client_backward", self.id):
            torch.autograd.backward(roots, grads)
            for part, samples in self.owed if roots else ():
                self.meter.spend(str(self.id), part, samples, 2)
            self.owed = []
            self.training.step(self.optimizer, self.anchor, times)

    def update_along(self, gradients: Sequence[Tensor]) -> None:
        """Take ONE optimizer step along gradients that were found without a backward pass, in the order of `trained`."""
        with self.meter.phase("client_backward", self.id):
            for parameter, gradient in zip(self.trained(), gradients, strict=True):
                parameter.grad = gradient
            self.training.step(self.optimizer, self.anchor)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that its optimizer moves."""
        return [parameter for parameter in parameters_of(self.optimizer) if parameter.requires_grad]

    def owned(self) -> Iterator[Tensor]:
        """Yield the tensors that it keeps from step to step."""
        yield from (*owned_tensors([self.modules], self.optimizer), *self.anchor, *codec_tensors(self.codecs))

    def note(self, record: Record) -> None:
        """Add a step's record to the sums of this turn, on the device."""
        for name, value in record.items():
            self.totals[name] = self.totals.get(name, 0) + value.float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def weights(self) -> dict[str, Tensor]:
        """Return parameters and buffers of what travels, by <module>.<parameter>."""
        return {f"{name}.{key}": value for name in self.travels for key, value in self.modules[name].state_dict().items()}

    def receive(self, go: Message) -> None:
        """Take what a go brings: weights into the existing modules, optimizer state as `hand_over` says."""
        mine = self.weights()
        arrived = {role.partition("/")[2]: t for role, t in go.tensors.items() if role.startswith("weights/")}
        with torch.no_grad():
            for name, tensor in arrived.items():
                if name not in mine:
                    raise BadInput(f"weights {name!r} arrived, which this client does not have; both ends need the same recipe")
                mine[name].copy_(tensor)
        if arrived and self.hand_over == "reset":
            self.optimizer.state.clear()
        if arrived and self.hand_over == "carry":
            load_slots(self, {role: t for role, t in go.tensors.items() if role.startswith("optimizer/")})
        version, round = int(go.numbers["version"]), int(go.numbers["round"])
        if self.training.prox and (version > self.version or not self.anchor):
            self.anchor = [parameter.detach().clone() for parameter in parameters_of(self.optimizer)]
        if round != self.round:
            self.round, self.step = round, 0
        self.version, self.give_back, self.orders = version, int(go.numbers["return"]), dict(go.numbers)
        self.training.set_round(self.optimizer, int(go.numbers["pace"]))

    def sync(self, done: bool, batches: Batches) -> Message:
        """Return the message that ends a turn, or says hello; it brings weights and records if they are wanted.

        The go said what is wanted: 1 weights, 2 (at the end of a round) what is not among them, for evaluation; 3 both.
        """
        left = batches.per_round - self.step
        numbers: dict[str, float] = {"done": done, "version": self.version, "weight": self.weight}
        numbers |= {"batches": batches.per_round, "left": left}
        tensors: dict[str, Tensor] = {}
        if done:
            weights = self.weights()
            kept = batch_norm_entries(list(weights)) if self.keeps_norm else set()
            sent = weights.keys() - kept if self.give_back & 1 else set()
            if self.give_back & 2 and not left:
                tensors = {f"evaluation/{name}": value for name, value in weights.items() if name not in sent}
            tensors = {f"weights/{name}": value for name, value in weights.items() if name in sent} | tensors
            if self.give_back & 1 and self.hand_over == "carry":
                tensors |= slots(self)
            if not left:
                numbers |= {f"record/{name}": float(total) / self.counts[name] for name, total in self.totals.items()}
                self.totals, self.counts = {}, {}
        return Message("sync", tensors, {name: float(value) for name, value in numbers.items()}, self.id, self.round)

    def state(self) -> dict[str, Any]:
        """Return all that must survive between batches."""
        return {
            "round": self.round, "step": self.step, "version": self.version, "give_back": self.give_back,
            "modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict(),
            "totals": self.totals, "counts": self.counts, "anchor": self.anchor,
            "reducer": self.reducer.state() if self.reducer else {},
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Become what a state says, whatever was under way."""
        self.owed, self.orders = [], {}
        self.optimizer.zero_grad(set_to_none=True)
        self.round, self.step, self.version, self.give_back = (state[k] for k in ("round", "step", "version", "give_back"))
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.totals, self.counts, self.anchor = dict(state["totals"]), dict(state["counts"]), list(state["anchor"])
        if self.reducer:
            self.reducer.load(state["reducer"])
