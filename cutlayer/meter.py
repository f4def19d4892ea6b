"""What a run costs: exact bytes by direction, client and role; seconds by phase; memory by side."""

import _thread
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .wire import Packed, family

Side = Literal["client", "server"]
Direction = Literal["up", "down"]
PHASES = ("client_forward", "client_backward", "server_forward", "server_backward", "codec", "wait")


class Meter:
    """Counts for one run. `sync` waits for the device before a time stamp (nothing to wait for on a CPU)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.cuda = torch.device(device), torch.device(device).type == "cuda"
        self.payload: dict[tuple[str, str, int], int] = defaultdict(int)  # (direction, role, client)
        self.wire: dict[tuple[str, str, int], int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak: dict[str, int] = defaultdict(int)
        self.left: dict[str, int] = defaultdict(int)  # bytes that autograd still keeps when a sampled step is over
        self.held: dict[str, float] = defaultdict(float)  # byte-seconds of the sampled steps
        self.steps: dict[str, int] = defaultdict(int)
        self.samples: dict[str, int] = defaultdict(int)
        self.sampling: dict[tuple[str, int], Saved] = {}
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
        """Time what runs inside under `name`; in a sampled step of that side, count what autograd keeps as well."""
        side: Side = "client" if name.startswith("client") else "server"
        saved = self.sampling.get((side, client))
        with ExitStack() as stack:
            if saved is not None:
                stack.enter_context(saved.watch())
            begin = self.now()
            yield
            self.seconds[name] += self.now() - begin

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def step(self, side: Side, client: int, sample: bool, owned: Callable[[], int]) -> Iterator[None]:
        """Bracket one training step of a side; a sampled one sets its peak: `owned()` bytes and what autograd saved."""
        self.steps[side] += 1
        if not sample:
            yield
            return
        self.samples[side] += 1
        with self.watched(side, client, owned) as saved:
            yield
        self.held[side] += saved.byte_seconds

    @contextmanager
    def watched(self, side: Side, client: int, owned: Callable[[], int]) -> Iterator["Saved"]:
        """Let what a side does beside its steps, too, set its peak: `owned()` bytes and what autograd saved in its phases."""
        saved = self.sampling[side, client] = Allocated() if self.cuda else Saved()
        try:
            yield saved
        finally:
            del self.sampling[side, client]
            saved.close()
            self.peak[side] = max(self.peak[side], owned() + saved.peak)
            self.left[side] = max(self.left[side], saved.now)

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
            name: dict(getattr(self, name)) for name in ("seconds", "peak", "left", "held", "steps", "samples", "work")
        }

    def load(self, state: Mapping[str, Any]) -> None:
        for name in ("payload", "wire"):
            getattr(self, name).clear()
            for key, n in state[name].items():
                direction, role, client = key.split("|")
                getattr(self, name)[direction, role, int(client)] = n
        for name in ("seconds", "peak", "left", "held", "steps", "samples", "work"):
            getattr(self, name).clear()
            getattr(self, name).update(state[name])


class Saved:
    """Bytes that autograd keeps for backward, each live storage once, and how long it keeps them (parameters excluded)."""

    def __init__(self) -> None:
        self.live: dict[int, list[int]] = {}  # storage address -> [tensors that use it, bytes]
        self.now = self.peak = 0
        self.byte_seconds = 0.0
        self.stamp = time.perf_counter()

    def _tick(self) -> None:
        stamp = time.perf_counter()
        self.byte_seconds += self.now * (stamp - self.stamp)
        self.stamp = stamp

    def keep(self, tensor: Tensor) -> Any:
        if isinstance(tensor, nn.Parameter) or (tensor._base is not None and isinstance(tensor._base, nn.Parameter)):
            return tensor
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        entry = self.live.setdefault(address, [0, storage.nbytes()])
        entry[0] += 1
        if entry[0] == 1:
            self._tick()
            self.now += entry[1]
            self.peak = max(self.peak, self.now)
        return Kept(tensor.detach(), self, address)  # detached, or an output would hold its own graph for ever

    def release(self, address: int) -> None:
        entry = self.live[address]
        entry[0] -= 1
        if not entry[0]:
            self._tick()
            self.now -= entry[1]
            del self.live[address]

    @contextmanager
    def watch(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept.tensor if isinstance(kept, Kept) else kept):
            yield

    def close(self) -> None:
        self._tick()


class Kept:
    """A saved tensor on autograd's side; tells its book when it is let go."""

    def __init__(self, tensor: Tensor, book: Saved, address: int) -> None:
        self.tensor, self.book, self.address = tensor, book, address

    def __del__(self) -> None:
        self.book.release(self.address)


@contextmanager
def heard() -> Iterator[None]:
    """Let no finalizer swallow an interrupt: one that finds this thread inside of Kept.__del__ comes again a moment later."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        at = frame
        while at is not None:
            if at.f_code is Kept.__del__.__code__:
                threading.Timer(0.01, _thread.interrupt_main).start()
                return
            at = at.f_back
        before(number, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Allocated(Saved):
    """The same on CUDA, from the allocator: the growth of allocated bytes over the phases of one side's step."""

    def __init__(self) -> None:
        super().__init__()
        self.base: int | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self._tick()
        yield
        torch.cuda.synchronize()
        self._tick()
        self.peak = max(self.peak, self.now + torch.cuda.max_memory_allocated() - before)
        self.now += torch.cuda.memory_allocated() - before


def owned_bytes(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None) -> int:
    """Return the bytes of parameters, buffers, gradients (one per trained parameter) and optimizer state."""
    total = 0
    for module in modules:
        for tensor in module.parameters():
            total += tensor.nbytes * (2 if tensor.requires_grad else 1)
        total += sum(buffer.nbytes for buffer in module.buffers())
    if optimizer is not None:
        for slots in optimizer.state.values():
            total += sum(value.nbytes for value in slots.values() if isinstance(value, Tensor))
    return total
