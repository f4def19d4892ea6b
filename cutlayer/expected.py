"""What a client elsewhere may say: a server has only its word, so what does not fit is refused before any of it is kept."""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from .averaging import batch_norm_entries
from .client import Client
from .errors import BadInput
from .slots import SLOTS, parameter_names
from .wire import Message, Packed, family

COUNTS = ("done", "version", "weight", "batches", "left")  # of every sync
LARGEST = 2**32


class Expected:
    """Remembers what each client was told to give back, and holds what it sends against that.

    `client` is any of them as it was built; `kinds` of messages beside sync and mark are handled; `own` are the names in a round's record
    that only the server writes.
    """

    def __init__(self, client: Client, kinds: Collection[str], own: Collection[str]) -> None:
        self.weights, self.kinds, self.own = client.weights(), {"sync", "mark", *kinds}, frozenset(own)
        self.kept = batch_norm_entries(list(self.weights)) if client.keeps_norm else set()
        self.slots = SLOTS[type(client.optimizer)] if client.hand_over == "carry" else frozenset()
        self.trained = set(parameter_names(client).values())
        self.asked: dict[int, int] = {}

    def sent(self, message: Message) -> None:
        """Note what a client was told."""
        if message.kind == "go":
            self.asked[message.client] = int(message.numbers["return"])

    def begun(self, client: int) -> None:
        """Note that a client starts anew: it says hello before it is told anything."""
        self.asked.pop(client, None)

    def arriving(self, packed: Packed) -> None:
        """Raise BadInput on what no client sends, before a message is counted, seen or decoded."""
        message = packed.message
        if message.kind not in self.kinds:
            raise BadInput(
                f"a message of kind {message.kind!r:.80} arrived; this server handles {', '.join(sorted(self.kinds))}"
            )
        for name, value in message.numbers.items():
            if not math.isfinite(value) and family(name) != "record":  # a record may say that training has diverged
                raise BadInput(f"{name} = {value} in a message of kind {message.kind!r}; only finite numbers are sent")

    def check(self, message: Message) -> None:
        """Raise BadInput if a message is none that this client would send now."""
        for role in ("smashed", "labels"):
            if role in message.tensors and not message.tensors[role].shape[:1].numel():
                raise BadInput(
                    f"{role!r} of shape {tuple(message.tensors[role].shape)} holds no sample; a batch has one at least"
                )
        if message.is_sync:
            self._counts(message)
            self._tensors(message, self._wanted(message))

    def _counts(self, message: Message) -> None:
        numbers = message.numbers
        for name in COUNTS:
            value = numbers.get(name, -1.0)
            if not (0 <= value <= LARGEST and value.is_integer()):
                raise BadInput(f"{name} = {value} of its sync is no count; whole numbers up to {LARGEST} are")
        if not numbers["weight"] or numbers["left"] > numbers["batches"] or numbers["done"] > 1:
            raise BadInput(
                f"its sync says {', '.join(f'{name} {numbers[name]:g}' for name in COUNTS)}; no client with samples does"
            )
        for name in numbers:
            if family(name) == "record" and name.partition("/")[2] in self.own:
                raise BadInput(f"{name} is written by the server alone; give this figure of a client another name")

    def _wanted(self, message: Message) -> set[str]:
        if not message.numbers["done"]:
            return set()
        if message.client not in self.asked:
            raise BadInput("it ends a turn that it was not told to begin")
        asked = self.asked.pop(message.client)
        averaged = self.weights.keys() - self.kept if asked & 1 else set()
        others = self.weights.keys() - averaged if asked & 2 and not message.numbers["left"] else set()
        return {f"weights/{name}" for name in averaged} | {f"evaluation/{name}" for name in others}

    def _tensors(self, message: Message, wanted: set[str]) -> None:
        carried = [role for role in message.tensors if family(role) == "optimizer"]
        differing = wanted ^ (message.tensors.keys() - carried)
        if differing:
            raise BadInput(f"{len(differing)} of its weights are missing or were not asked for, {min(differing)!r} among them")
        for role in wanted:
            name = role.partition("/")[2]
            same(role, message.tensors[role], self.weights[name])
        found: dict[str, set[str]] = {}
        for role in carried:
            name, _, slot = role.removeprefix("optimizer/").partition("/")
            found.setdefault(name, set()).add(slot)
            if f"weights/{name}" not in wanted or name not in self.trained or slot not in self.slots:
                raise BadInput(f"{role!r} is no state of an optimizer that was asked for")
            same(role, message.tensors[role], torch.zeros(()) if slot == "step" else self.weights[name])
        if any(names != self.slots for names in found.values()):
            raise BadInput(f"its optimizer's state lacks some of {', '.join(sorted(self.slots))}")


def same(role: str, tensor: Tensor, mine: Tensor) -> None:
    """Raise BadInput unless a tensor that came could be this one; codecs give float32."""
    decoded = tensor.dtype == torch.float32 and mine.is_floating_point()
    if tensor.shape != mine.shape or not (decoded or tensor.dtype == mine.dtype):
        raise BadInput(
            f"{role!r} is {tuple(tensor.shape)} {tensor.dtype}, and this server's {tuple(mine.shape)} {mine.dtype}; "
            "both ends need the same recipe"
        )
