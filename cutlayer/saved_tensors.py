"""Bytes that autograd keeps for backward, and on CUDA the growth of allocated bytes."""

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn


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
