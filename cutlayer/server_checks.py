"""Validation of what a remote server sends: a client refuses what its scheme does not send, before anything of the client changes."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .averaging import batch_norm_entries
from .client import Client
from .errors import BadInput
from .expected import CODED, MAX_COUNT, SPARE_BYTES, check_slots, same
from .schedules import Schedule
from .slots import SLOTS, parameter_names
from .wire import Codecs, Message, Packed, family


class Question(NamedTuple):
    """A message that a reply is due for: its step, the kind of the reply, and the shapes of the tensors that were sent by role."""

    step: int
    reply: str
    shapes: Mapping[str, torch.Size]


class ServerChecks:
    """Compares every message of the server with what this client has asked.

    `schedule` is one of the recipe's, which says what a turn may ask for; `per_round` is the number of batches of a round; `method`
    may have `reply_kind` (the kind that answers activations, else cut_grad) and `go_numbers` (names that every go has).
    `features` is the shape of one sample's features, None without a tail.
    """

    def __init__(
        self, client: Client, method: Any, schedule: Schedule, per_round: int, features: torch.Size | None, samples: int, may_freeze: bool
    ) -> None:  # fmt: skip
        self.client, self.schedule, self.per_round, self.features, self.may_freeze = (
            client,
            schedule,
            per_round,
            features,
            may_freeze,
        )
        self.reply_kind: str = getattr(method, "reply_kind", "cut_grad")
        self.go_numbers = {"stop", "round", "return", "version", "pace", *getattr(method, "go_numbers", ())}
        self.mine = client.weights()
        self.kept = batch_norm_entries(list(self.mine)) if client.keeps_norm else set[str]()
        self.dtypes = {torch.float32, *(p.dtype for p in client.modules.parameters() if p.is_floating_point())}
        with client.training.autocast():
            self.dtypes |= {torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}
        self.slots = SLOTS[type(client.optimizer)] if client.hand_over == "carry" else frozenset[str]()
        self.trained = set(parameter_names(client).values())
        self.questions: list[Question] = []
        self.sent: Mapping[str, torch.Size] = {}  # shapes of the newest message
        self.done = False  # whether the newest sync ended a turn; a hello does not, even after the last batch of a round
        rows = samples * (math.prod(client.task.cut_shape) + math.prod(features or ()))
        tensors = [*client.modules.state_dict().values(), *(list(self.mine.values()) * len(self.slots))]
        self.largest = SPARE_BYTES + CODED * (sum(t.nbytes for t in tensors) + 4 * rows)  # bytes of any message

    def begun(self) -> None:
        """Note that the client begins again at one of its states: no earlier reply is due."""
        self.questions = []

    def asked(self, message: Message) -> None:
        """Note a message that this client sends, if a reply is due for it."""
        if message.reply == "none":
            return
        kinds = {"sync": "go", "mark": "mark", "probe": "loss", "smashed": "features" if message.open else self.reply_kind}
        if message.kind == "sync":
            self.done = bool(message.numbers["done"])
        shapes = {
            role: tensor.shape for role, tensor in message.tensors.items() if tensor.is_floating_point() or role == "smashed"
        }
        if message.kind == "feature_grad":  # the gradient at the cut is that of the activations sent before
            shapes = {**self.sent}
        self.sent = shapes
        self.questions.append(Question(message.step, kinds.get(message.kind, "cut_grad"), shapes))
        self.largest = max(self.largest, SPARE_BYTES + CODED * sum(t.nbytes for t in message.tensors.values()))

    def arriving(self, packed: Packed, codecs: Codecs) -> None:
        """Raise BadInput on a message that answers nothing, or whose tensors would be decoded to another size than fits."""
        message = packed.message
        if message.client != self.client.id:
            raise BadInput(f"the server sent a message for client {message.client}, and this is client {self.client.id}")
        due = [question.reply for question in self.questions if question.step == message.step]
        if message.kind not in due:
            raise BadInput(
                f"the server sent a message of kind {message.kind!r:.80} for step {message.step}; "
                f"{f'one of kind {due[0]!r} is due' if due else 'no reply is due for that step'}"
            )
        for name, value in message.numbers.items():
            if not math.isfinite(value):
                raise BadInput(
                    f"the server sent {name} = {value} in a message of kind {message.kind!r}; only finite numbers are sent"
                )
        wanted = self._shapes(message)
        for role, coded, parts in packed.roles:
            says = getattr(codecs.get(family(role)), "says", None)
            shape = says(parts) if coded and parts and says else None
            if shape is not None and shape != wanted.get(role, shape):
                raise BadInput(_misfit(role, shape, wanted[role]))

    def check(self, message: Message) -> None:
        """Raise BadInput if a decoded message does not fit what was asked."""
        wanted = self._shapes(message)
        if message.kind == "go":
            self._turn(message.numbers)
            self._weights(message)
        elif message.kind == "features":
            self._features(message)
        elif wanted or message.kind in ("mark", "cut_grad"):
            self._tensors(message, wanted)
        self.questions.remove(next(q for q in self.questions if (q.step, q.reply) == (message.step, message.kind)))

    def final(self, message: Message) -> None:
        """Raise BadInput unless these are final weights of this client's own modules."""
        if message.client != self.client.id or any(family(role) != "weights" for role in message.tensors):
            raise BadInput("the server's final weights have other tensors than weights, or are another client's")
        self._own(message)
        for role, tensor in message.tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise BadInput(f"the final weights {role!r} that the server sent hold NaN or infinity; nothing was saved")

    def _shapes(self, message: Message) -> dict[str, torch.Size]:
        """Return the shapes that a message's tensors must have, as far as they follow from what was asked, by role."""
        if message.kind in ("go", "final"):
            return {f"weights/{name}": tensor.shape for name, tensor in self.mine.items()}
        if message.kind == "loss":
            return {"loss": torch.Size()}
        if message.kind == "cut_grad":
            shapes = next(q.shapes for q in self.questions if (q.step, q.reply) == (message.step, message.kind))
            return {
                role.replace("smashed", "cut_grad", 1): shape for role, shape in shapes.items() if family(role) == "smashed"
            }
        if message.kind in self.client.modules:
            return {f"{message.kind}/{name}": t.shape for name, t in self.client.modules[message.kind].state_dict().items()}
        return {}

    def _turn(self, numbers: Mapping[str, float]) -> None:
        """Raise BadInput if a go begins no turn that this client may take now."""
        plan, client = self.schedule.plan, self.client
        if missing := sorted(self.go_numbers - numbers.keys()):
            raise BadInput(f"the server's go lacks {', '.join(missing)}")
        bounds = {"stop": (0, 1), "round": (client.round, self.schedule.last_turn), "pace": (0, plan.rounds)}
        bounds |= {"version": (client.version, MAX_COUNT), "return": (0, 3)}
        for name, (least, most) in bounds.items():
            if not (least <= numbers[name] <= most and numbers[name].is_integer()):
                raise BadInput(f"the server's go has {name} = {numbers[name]:g}; whole numbers from {least} to {most} fit now")
        stop, round = bool(numbers["stop"]), int(numbers["round"])
        finished = self.done and round == client.round and client.step >= self.per_round
        if not stop and (round == self.schedule.last_turn or finished):
            raise BadInput(
                f"the server's go begins a turn of round {round}, which this client has finished; training has {plan.rounds}"
            )
        asks = self.schedule.asks(round, may_freeze=self.may_freeze)
        if numbers["return"] not in ({0, asks} if self.may_freeze else {asks}):
            raise BadInput(
                f"the server's go asks for weights (return = {numbers['return']:g}) that this scheme does not send in round {round}: "
                f"there it is {asks}"
            )

    def _weights(self, message: Message) -> None:
        families = {family(role) for role in message.tensors}
        if others := families - {"weights", "optimizer"}:
            raise BadInput(f"the server's go brings {min(others)!r:.80}; only weights and optimizer state travel")
        names = {role.removeprefix("weights/") for role in message.tensors if family(role) == "weights"}
        if names and not any(self.schedule.asks(round, may_freeze=True) & 1 for round in range(self.schedule.plan.rounds)):
            raise BadInput("the server's go brings weights, and in this scheme every client keeps its own")
        if names and (missing := self.mine.keys() - self.kept - names):
            raise BadInput(f"the server's go brings some weights, and lacks {min(missing)!r}")
        self._own(message)
        carried = {role: t for role, t in message.tensors.items() if family(role) == "optimizer"}
        check_slots(carried, self.mine, self.trained & names, self.slots)

    def _own(self, message: Message) -> None:
        for role, tensor in message.tensors.items():
            if family(role) == "weights":
                name = role.partition("/")[2]
                if name not in self.mine:
                    raise BadInput(
                        f"the server sent weights {name!r:.80}, which this client does not have; both ends need the same recipe"
                    )
                same(role, tensor, self.mine[name], "this client's")

    def _features(self, message: Message) -> None:
        """Features have a row for each sample; where nodes or edges cross, at most as many rows as were sent."""
        features = message.tensors.get("features")
        shapes = next(q.shapes for q in self.questions if (q.step, q.reply) == (message.step, "features"))
        if features is None or len(message.tensors) > 1 or features.dtype not in self.dtypes or not features.dim():
            brought = ", ".join(f"{role} of {tensor.dtype}" for role, tensor in message.tensors.items())
            raise BadInput(f"the server sent {brought or 'nothing':.80} where features are due")
        rows = shapes["smashed"][0]
        fits = 0 < len(features) <= rows if self.client.task.ragged else len(features) == rows
        if not fits or features.shape[1:] != self.features:
            raise BadInput(_misfit("features", features.shape, (rows, *(self.features or ()))))

    def _tensors(self, message: Message, wanted: Mapping[str, torch.Size]) -> None:
        """Raise BadInput unless a reply brings tensors of these shapes; gradients of tensors beside the main one may be missing."""
        optional = {role for role in wanted if role.startswith("cut_grad/")}
        if wrong := (message.tensors.keys() - wanted.keys()) | (wanted.keys() - message.tensors.keys() - optional):
            raise BadInput(f"a reply of kind {message.kind!r} brings {min(wrong)!r:.80} unasked, or lacks it")
        for role, tensor in message.tensors.items():
            _check_float(role, tensor, wanted[role], floating=message.kind in ("cut_grad", "loss"))


def _check_float(role: str, tensor: Tensor, shape: torch.Size, floating: bool) -> None:
    if tensor.shape != shape or (floating and not tensor.is_floating_point()):
        raise BadInput(_misfit(role, tensor.shape, shape))


def _misfit(role: str, shape: Any, wanted: Any) -> str:
    return f"the server sent {role!r:.80} of shape {tuple(shape)}, and {tuple(wanted)} fits; both ends need the same recipe"
