"""What a client elsewhere may say: a server has only its word, so what does not fit is refused before any of it is kept."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .averaging import batch_norm_entries
from .client import Client
from .errors import BadInput, NotFinite
from .finite import first_not_finite, not_finite
from .frame import MAX_BYTES
from .record_names import RecordNames
from .slots import SLOTS, parameter_names
from .wire import Codecs, Message, Packed, family

COUNTS = ("done", "version", "weight", "batches", "left")  # of every sync
MAX_COUNT = 2**53
MAX_SAMPLES = 10**9
MAX_RECORD = torch.finfo(torch.float32).max  # records are sums in float32
MOST = 2.0**63  # bytes, seconds or steps
SPARE_BYTES = 1 << 20  # of a message beside its tensors: names, shapes, padding
CODED = 4  # a codec makes a tensor at most so many times larger


class Expected:
    """Remembers what each client was told to give back, and holds what it sends against that.

    `client` is any of them as it was built; `kinds` of messages beside sync and mark are handled; `records` are the names that a client
    may record. `at_cut` are tensors of samples as they cross the cut, by role, and `labels` are targets of the same data set;
    `samples` is how many a batch has at most. `batches_of` gives the number of batches in a round of a client with n samples.
    `counts` has the number of samples of each client; it changes when a client says what it has.

    With `examines_all` every tensor at the cut is checked for infinity and NaN, else only records and weights: activations are many.
    """

    def __init__(
        self,
        client: Client,
        kinds: Collection[str],
        records: RecordNames,
        at_cut: Mapping[str, Tensor],
        labels: Tensor,
        samples: int,
        batches_of: Callable[[int], int],
        counts: dict[int, int],
    ) -> None:
        self.weights, self.kinds, self.records = client.weights(), {"sync", "mark", *kinds}, records
        self.shapes = {role: tensor.shape[1:] for role, tensor in at_cut.items()}
        self.samples, self.ragged, self.merges = samples, client.task.ragged, client.reducer is not None
        self.batches_of, self.counts = batches_of, counts
        built = {f"{end}/{name}": tensor for name, tensor in self.weights.items() for end in ("weights", "evaluation")}
        self.infinite = not_finite({**built, **at_cut, "labels": labels})  # roles that hold infinity or NaN as built
        self.label_floats, self.label_shape = _of_floats(labels), labels.shape[1:]
        self.label_range = (0, 0)  # of integers: the classes, and whatever this server's own targets have beside them
        if labels.numel() and not self.label_floats:
            low, high = _range(labels)
            self.label_range = min(0, low), max(client.task.num_classes - 1, high)
        self.examines_all = False
        self.kept = batch_norm_entries(list(self.weights)) if client.keeps_norm else set()
        self.slots = SLOTS[type(client.optimizer)] if client.hand_over == "carry" else frozenset()
        self.trained = set(parameter_names(client).values())
        self.largest = MAX_BYTES  # bytes of any message; of graphs, whose sizes differ, those of any frame
        if not self.ragged:
            per_sample = sum(t.nbytes / len(t) for t in at_cut.values()) + labels.nbytes / max(1, len(labels))
            model = sum(t.nbytes for t in self.weights.values()) * (1 + len(self.slots))
            self.largest = min(MAX_BYTES, SPARE_BYTES + CODED * math.ceil(model + samples * per_sample))
        self.asked: dict[int, int] = {}
        self.batches: dict[int, float] = {}  # of a client's round, as it said when it synced

    def sent(self, message: Message) -> None:
        """Note what a client was told."""
        if message.kind == "go":
            self.asked[message.client] = int(message.numbers["return"])

    def begun(self, client: int) -> None:
        """Note that a client starts anew: it says hello before it is told anything."""
        self.asked.pop(client, None)

    def arriving(self, packed: Packed, codecs: Codecs) -> None:
        """Raise BadInput on what no client sends, before a message is counted, seen or decoded: few bytes may stand for many."""
        message = packed.message
        if message.kind not in self.kinds:
            raise BadInput(
                f"a message of kind {message.kind!r:.80} arrived; this server handles {', '.join(sorted(self.kinds))}"
            )
        for name, value in message.numbers.items():
            if not math.isfinite(value) or (family(name) == "record" and abs(value) > MAX_RECORD):
                raise NotFinite(f"{name} = {value} in a message of kind {message.kind!r}; only finite numbers are sent")
        for role, coded, parts in packed.roles:
            says = getattr(codecs.get(family(role)), "says", None)
            shape = says(parts) if coded and parts and says else None
            if shape is not None and family(role) != "weights":
                self._fits(role, shape)
            elif shape is not None and shape != getattr(self.weights.get(role.partition("/")[2]), "shape", None):
                raise BadInput(
                    f"{role!r} of shape {tuple(shape)} is no weight of this server's; both ends need the same recipe"
                )

    def _fits(self, role: str, shape: torch.Size) -> None:
        """Raise BadInput unless this is the shape of a batch of what crosses the cut, of which a reducer may leave tokens out."""
        wanted = self.shapes.get(role, torch.Size())
        rest = wanted[:1] + shape[2:] if self.merges and shape[1:2] <= wanted[:1] else shape[1:]
        counted = role == "smashed" and not self.ragged  # else rows may be nodes, edges, or whatever a model has
        if role not in self.shapes or rest != wanted or (counted and not 0 < shape[:1].numel() <= self.samples):
            raise BadInput(
                f"{role!r} of shape {tuple(shape)}: a batch here is 1 to {self.samples} samples of {tuple(wanted)}; "
                "both ends need the same recipe, and data of one shape"
            )

    def check(self, message: Message) -> None:
        """Raise BadInput if a message is none that this client would send now."""
        for role, tensor in message.tensors.items():
            if family(role) in ("smashed", "feature_grad"):
                self._fits(role, tensor.shape)
        if "labels" in message.tensors:
            self._labelled(message.tensors)
        if message.is_sync or self.examines_all:
            name = first_not_finite(message.tensors, self.infinite)
            if name is not None:
                raise NotFinite(
                    f"{name!r} in a message of kind {message.kind!r} holds infinity or NaN; only finite numbers are sent"
                )
        if not message.is_sync and not message.is_mark and not message.step < self.batches.get(message.client, 0.0):
            raise BadInput(
                f"step {message.step} in a message of kind {message.kind!r}; its round has {self.batches.get(message.client, 0):g} batches"
            )
        if message.is_sync:
            self._counts(message)
            self.batches[message.client] = message.numbers["batches"]
            self._tensors(message, self._wanted(message))

    def _labelled(self, tensors: Mapping[str, Tensor]) -> None:
        labels = tensors["labels"]
        rows = len(labels) if labels.dim() else 0
        if not 0 < rows <= self.samples or not (self.ragged or rows == len(tensors["smashed"])):
            raise BadInput(
                f"'labels' of shape {tuple(labels.shape)} are not those of 1 to {self.samples} samples that came along"
            )
        soft = self.merges and labels.is_floating_point()  # shares of classes, of merged samples
        if soft or self.ragged:
            return
        if _of_floats(labels) != self.label_floats or labels.shape[1:] != self.label_shape:
            kind = "floats" if self.label_floats else "integers"
            raise BadInput(
                f"'labels' of {labels.dtype} and shape {tuple(labels.shape)}; targets here are {kind} of shape "
                f"{tuple(self.label_shape)} a sample"
            )
        if not self.label_floats and labels.numel():
            low, high = _range(labels)
            if low < self.label_range[0] or high > self.label_range[1]:
                raise BadInput(
                    f"'labels' from {low} to {high}; those here lie from {self.label_range[0]} to {self.label_range[1]}"
                )

    def _counts(self, message: Message) -> None:
        numbers = message.numbers
        for name in COUNTS:
            value = numbers.get(name, -1.0)
            if not (0 <= value <= MAX_COUNT and value.is_integer()):
                raise BadInput(f"{name} = {value} of its sync is no count; whole numbers up to {MAX_COUNT} are")
        if not numbers["weight"] or numbers["left"] > numbers["batches"] or numbers["done"] > 1:
            raise BadInput(
                f"its sync says {', '.join(f'{name} {numbers[name]:g}' for name in COUNTS)}; no client with samples does"
            )
        count = self.counts.get(message.client, 0)
        if (numbers["weight"], numbers["batches"]) != (count, self.batches_of(count)):
            raise BadInput(
                f"its sync says weight {numbers['weight']:.0f} and batches {numbers['batches']:.0f}; a client with {count} samples, as it "
                f"said, has weight {count} and {self.batches_of(count)} batches in a round"
            )
        names = [name.partition("/")[2] for name in numbers if family(name) == "record"]
        if names and (numbers["left"] or not numbers["done"]):
            raise BadInput("its sync has records before the end of its round")
        self.records.check(names)

    def _wanted(self, message: Message) -> set[str]:
        if not message.numbers["done"]:
            return set()
        if message.client not in self.asked:
            raise BadInput("it ends a turn that it was not told to begin")
        if message.numbers["left"] == message.numbers["batches"]:
            raise BadInput("its turn ends before its first batch")
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
        names = {role.partition("/")[2] for role in wanted if family(role) == "weights"}
        check_slots({role: message.tensors[role] for role in carried}, self.weights, self.trained & names, self.slots)


def _of_floats(labels: Tensor) -> bool:
    return labels.is_floating_point() or labels.is_complex()


def _range(labels: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest of integers."""
    return int(labels.long().min()), int(labels.long().max())


def check_slots(
    carried: Mapping[str, Tensor], weights: Mapping[str, Tensor], names: Collection[str], slots: frozenset[str]
) -> None:
    """Raise BadInput unless tensors by optimizer/<name>/<slot> are the whole states of some of the parameters `names`."""
    found: dict[str, set[str]] = {}
    for role, tensor in carried.items():
        name, _, slot = role.removeprefix("optimizer/").partition("/")
        found.setdefault(name, set()).add(slot)
        if name not in names or slot not in slots:
            raise BadInput(f"{role!r} is no state of an optimizer that was asked for")
        same(role, tensor, torch.zeros(()) if slot == "step" else weights[name])
    if any(present != slots for present in found.values()):
        raise BadInput(f"its optimizer's state lacks some of {', '.join(sorted(slots))}")


def check_labels(held: object) -> list[int]:
    """Return the labels of the states that a client holds; raises BadInput if they are something else."""
    if not isinstance(held, list) or not all(type(label) is int and 0 <= label < 2**63 for label in held):
        raise BadInput("what it says of its states is no list of numbers")
    return held


def figures(told: Any) -> dict[str, Any]:
    """Return what a client has measured, and whether its samples are reproducible; raises BadInput if it is something else."""
    wanted = ("seconds", "peak", "kept", "left", "held", "steps", "samples")
    tables = told if isinstance(told, dict) else {}
    if not all(isinstance(tables.get(name), dict) for name in wanted):
        raise BadInput("its figures are not those of a meter")
    for name in wanted:
        for key, value in tables[name].items():
            if not isinstance(value, int | float) or not 0 <= value <= MOST:
                raise BadInput(f"{name} {key:.40} = {value!r:.40} is no figure of a meter; those lie from 0 to {MOST:.3g}")
    if not isinstance(reproducible := tables.get("reproducible", True), bool):
        raise BadInput(f"reproducible = {reproducible!r:.40} is neither true nor false")
    return {**{name: tables[name] for name in wanted}, "reproducible": reproducible}


def same(role: str, tensor: Tensor, mine: Tensor, whose: str = "this server's") -> None:
    """Raise BadInput unless a tensor that came could be this one; codecs give float32."""
    decoded = tensor.dtype == torch.float32 and mine.is_floating_point()
    if tensor.shape != mine.shape or not (decoded or tensor.dtype == mine.dtype):
        raise BadInput(
            f"{role!r} is {tuple(tensor.shape)} {tensor.dtype}, and {whose} {tuple(mine.shape)} {mine.dtype}; "
            "both ends need the same recipe"
        )
