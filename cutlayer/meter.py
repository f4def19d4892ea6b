"""What a run costs: exact bytes by direction, client and role; seconds by phase; memory by side."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .memory import LiveTensors, total_bytes
from .saved_tensors import Allocated, Saved
from .wire import Exchange, Packed, family

Side = Literal["client", "server"]
Direction = Literal["up", "down"]
Owned = Callable[[], Iterable[Tensor]]
T = TypeVar("T")
PHASES = ("client_forward", "client_backward", "server_forward", "server_backward", "codec", "wait")


class Meter:
    """Counts for one run. `sync` waits for the device before a time stamp (nothing to wait for on a CPU)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.cuda = torch.device(device), torch.device(device).type == "cuda"
        self.payload: dict[tuple[str, str, int], int] = defaultdict(int)  # (direction, role, client)
        self.wire: dict[tuple[str, str, int], int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak: dict[str, int] = defaultdict(int)
        self.transient: dict[str, int] = defaultdict(int)  # the largest peak of a step beside what the side owned
        self.kept: dict[str, int] = defaultdict(int)  # the largest number of bytes that autograd kept in a sampled step
        self.left: dict[str, int] = defaultdict(int)  # bytes that autograd still keeps when a sampled step is over
        self.held: dict[str, float] = defaultdict(float)  # byte-seconds of the sampled steps
        self.steps: dict[str, int] = defaultdict(int)
        self.samples: dict[str, int] = defaultdict(int)
        self.sampling: dict[tuple[str, int], Sample] = {}
        self.cost: Mapping[str, int] = {}  # multiply-adds of one sample's forward pass by part; empty: work is not counted
        self.work: dict[str, float] = defaultdict(float)  # multiply-adds so far of "server" and of each client
        self.again: set[tuple[str, int]] = (
            set()
        )  # whose next message, by direction and client, only repeats one of before a stop
        self.clock: Callable[[], float] | None = None  # simulated seconds so far

    @property
    def simulated(self) -> float | None:
        """Simulated seconds so far, where there is a virtual clock."""
        return None if self.clock is None else self.clock()

    def spend(self, who: str, part: str, samples: int, passes: int = 1) -> None:
        """Add the multiply-adds of forward passes through a part (a backward pass counts as two)."""
        if self.cost:
            self.work[who] += self.cost.get(part, 0) * samples * passes

    def count(self, direction: Direction, packed: Packed) -> None:
        """Add one message: payload by role, and the frame's overhead to its first role (or its kind, where it has none).

        What is sent again because a party was started again is counted as "repeated".
        """
        client = packed.message.client
        if (direction, client) in self.again:
            self.again.discard((direction, client))
            self.wire[direction, "repeated", client] += packed.nbytes
            return
        payload = packed.payload()
        for role, nbytes in payload.items():
            self.payload[direction, role, client] += nbytes
            self.wire[direction, role, client] += nbytes
        first = family(packed.roles[0].role) if packed.roles else packed.message.kind
        self.wire[direction, first, client] += packed.nbytes - sum(payload.values())

    @contextmanager
    def phase(self, name: str, client: int = 0) -> Iterator[None]:
        """Time what runs inside under `name`; in a sampled step of that side, measure its memory as well."""
        side: Side = "client" if name.startswith("client") else "server"
        sample = self.sampling.get((side, client))
        with ExitStack() as stack:
            if sample is not None:
                stack.enter_context(sample.watch())
            begin = self.now()
            yield
            self.seconds[name] += self.now() - begin

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def step(self, side: Side, client: int, sample: bool, owned: Owned) -> Iterator[None]:
        """Bracket one training step of a side, which owns the tensors of `owned()` at its end; a sampled one sets its peak."""
        self.steps[side] += 1
        if not sample:
            yield
            return
        self.samples[side] += 1
        with self.watched(side, client, owned) as measured:
            yield
        self.held[side] += measured.kept.byte_seconds

    @contextmanager
    def watched(self, side: Side, client: int, owned: Owned) -> Iterator["Sample"]:
        """Let other work of a side set its peak, too, as a sampled step does."""
        sample = self.sampling[side, client] = SampleOnCuda(owned) if self.cuda else Sample()
        try:
            yield sample
        finally:
            del self.sampling[side, client]
            sample.kept.close()
            at_rest, transient = sample.result(list(owned()))
            self.peak[side] = max(self.peak[side], at_rest + transient)
            self.transient[side] = max(self.transient[side], transient)
            self.left[side] = max(self.left[side], sample.kept.now)
            if not self.cuda:
                self.kept[side] = max(self.kept[side], sample.kept.peak)

    def grown(self, side: Side, owned: Iterable[Tensor]) -> None:
        """Let a side that owns more than in its sampled steps set its peak: its largest step beside what it owns now."""
        self.peak[side] = max(self.peak[side], total_bytes(owned) + self.transient[side])

    def attend(self, side: Side, client: int, exchange: Exchange[T]) -> Exchange[T]:
        """Run a party's exchange; in a sampled step, measure the memory of all that it computes between its messages."""
        sample, reply = self.sampling.get((side, client)), None
        if sample is None or self.cuda:
            return (yield from exchange)
        try:
            while True:
                with sample.live.watch():
                    sent = exchange.send(reply)
                reply = yield sent
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            exchange.close()

    def unmeasured(self, side: Side, client: int) -> AbstractContextManager[None]:
        """Leave what a party computes inside out of the memory of its step."""
        sample = self.sampling.get((side, client))
        return sample.live.pause() if sample is not None else nullcontext()

    def held_byte_seconds(self, side: Side) -> float:
        """Return the byte-seconds that a side's graphs were held in the whole run, from the sampled steps."""
        return self.held[side] / self.samples[side] * self.steps[side] if self.samples[side] else 0.0

    def bytes_by_role(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return {direction: {role: {"payload": bytes, "wire": bytes}}}, summed over clients."""
        table: dict[str, dict[str, dict[str, int]]] = {"up": {}, "down": {}}
        for column, counts in (("payload", self.payload), ("wire", self.wire)):
            for (direction, role, _), nbytes in counts.items():
                cell = table[direction].setdefault(role, {"payload": 0, "wire": 0})
                cell[column] += nbytes
        return table

    def wire_by_client(self) -> dict[tuple[str, int], int]:
        """Return wire bytes by direction and client."""
        sums: dict[tuple[str, int], int] = defaultdict(int)
        for (direction, _, client), nbytes in self.wire.items():
            sums[direction, client] += nbytes
        return sums

    def bytes_by_client(self) -> dict[int, int]:
        """Return wire bytes, both directions, by client."""
        sums: dict[int, int] = defaultdict(int)
        for (_, client), nbytes in self.wire_by_client().items():
            sums[client] += nbytes
        return dict(sums)

    def state(self) -> dict[str, Any]:
        joined = {name: {"|".join(map(str, key)): n for key, n in getattr(self, name).items()} for name in ("payload", "wire")}
        return joined | {
            name: dict(getattr(self, name))
            for name in ("seconds", "peak", "transient", "kept", "left", "held", "steps", "samples", "work")
        }

    def load(self, state: Mapping[str, Any]) -> None:
        for name in ("payload", "wire"):
            getattr(self, name).clear()
            for key, n in state[name].items():
                direction, role, client = key.split("|")
                getattr(self, name)[direction, role, int(client)] = n
        for name in ("seconds", "peak", "transient", "kept", "left", "held", "steps", "samples", "work"):
            getattr(self, name).clear()
            getattr(self, name).update(state[name])


class Sample:
    """What is measured in one step of a side: what autograd keeps, and live tensors."""

    def __init__(self) -> None:
        self.kept, self.live = Saved(), LiveTensors()

    @contextmanager
    def watch(self) -> Iterator[None]:
        with self.kept.watch(), self.live.watch():
            yield

    def result(self, owned: Sequence[Tensor]) -> tuple[int, int]:
        """Return the bytes that the side owns at the end of the step, and the peak of the others that lived beside them."""
        return total_bytes(owned), self.live.peak(owned)


class SampleOnCuda(Sample):
    """The same by CUDA's allocator: the growth of allocated bytes beside what the side owns when the step begins."""

    def __init__(self, owned: Owned) -> None:
        super().__init__()
        self.kept, self.at_rest = Allocated(), total_bytes(owned())

    @contextmanager
    def watch(self) -> Iterator[None]:
        with self.kept.watch():
            yield

    def result(self, owned: Sequence[Tensor]) -> tuple[int, int]:
        return self.at_rest, self.kept.peak
