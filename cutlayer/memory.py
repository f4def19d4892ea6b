"""Memory of one party: the tensors that it owns, and the live tensors of its measured step."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def owned_tensors(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None) -> Iterator[Tensor]:
    """Yield the parameters and buffers of modules and the state of an optimizer, without gradients."""
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
    if optimizer is not None:
        yield from tensors_in(list(optimizer.state.values()))


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested mappings, lists and tuples."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from tensors_in(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from tensors_in(item)


def codec_tensors(codecs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that codecs keep from message to message, such as error feedback; counters (0-d) are left out."""
    return (t for t in tensors_in([codec.state() for codec in codecs.values()]) if t.dim())


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors; several that begin at the same place of one storage count once."""
    return sum({(_storage_key(tensor), tensor.storage_offset()): tensor.nbytes for tensor in tensors}.values())


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class LiveTensors:
    """Records when the storages that operations create or read inside of `watch` begin and end to live.

    A storage that an operation creates counts from then on. A tensor that an operation reads and that came from elsewhere (a batch,
    a received message) counts from the beginning of that `watch`, with its own bytes where it is a part of a larger storage.
    """

    def __init__(self) -> None:
        # in order: (reference to a storage, bytes) where it begins, the reference alone where it has been freed
        self.events: list[Any] = []
        self.known: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}  # by address: reference, bytes of the storage
        self.recorder = _Recorder(self)
        self.begin = 0
        self.active = self.paused = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Record nothing of what runs inside, such as diagnostics on copies."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record what runs inside, in this thread and in backward passes that it starts; may be nested."""
        if self.active:
            yield
            return
        self.begin, self.active = len(self.events), True
        try:
            with self.recorder:
                yield
        finally:
            self.active = False

    def read(self, tensor: Tensor) -> None:
        """Record a tensor that an operation reads."""
        storage = tensor.untyped_storage()
        if self._known(storage) is None:
            self.events.insert(self.begin, (self._remember(storage), min(storage.nbytes(), tensor.nbytes)))

    def write(self, tensor: Tensor) -> None:
        """Record a tensor that an operation returns."""
        storage = tensor.untyped_storage()
        known = self._known(storage)
        if known is None:
            self.events.append((self._remember(storage), storage.nbytes()))
        elif known[1] != storage.nbytes():  # it was resized
            self.known[storage._cdata] = known[0], storage.nbytes()
            self.events.append((known[0], storage.nbytes()))

    def _known(self, storage: torch.UntypedStorage) -> "tuple[weakref.ref[torch.UntypedStorage], int] | None":
        found = self.known.get(storage._cdata)
        return found if found is not None and found[0]() is storage else None

    def _remember(self, storage: torch.UntypedStorage) -> "weakref.ref[torch.UntypedStorage]":
        # the callback is no Python code, so no interrupt can arrive inside of it and be swallowed
        reference = weakref.ref(storage, self.events.append)
        self.known[storage._cdata] = reference, storage.nbytes()
        return reference

    def peak(self, owned: Iterable[Tensor]) -> int:
        """Return the largest number of bytes that lived at once beside `owned` tensors, which are counted apart."""
        apart = {id(self.known[key][0]) for key in map(_storage_key, owned) if key in self.known}
        sizes: dict[int, int] = {}
        now = peak = 0
        for event in list(self.events):
            if not isinstance(event, tuple):
                now -= sizes.pop(id(event), 0)
            elif id(event[0]) not in apart:
                now += event[1] - sizes.get(id(event[0]), 0)
                sizes[id(event[0])] = event[1]
                peak = max(peak, now)
        return peak


class _Recorder(TorchDispatchMode):
    """Shows every operation's tensors to a record and changes nothing."""

    def __init__(self, live: LiveTensors) -> None:
        super().__init__()
        self.live = live

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled code runs as it would without

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.live.paused:
            return func(*args, **kwargs)
        for tensor in _on_cpu((args, kwargs)):
            self.live.read(tensor)
        result = func(*args, **kwargs)
        for tensor in _on_cpu(result):
            self.live.write(tensor)
        return result


def _on_cpu(tree: Any) -> Iterator[Tensor]:
    return (t for t in tensors_in(tree) if t.device.type == "cpu" and t.layout is torch.strided)
