"""Codecs one after the other, and the error of one carried over to the next message of the same weights."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .base import Stateless

if TYPE_CHECKING:
    from ..message import Message


class Chain(Stateless):
    """Each codec but the first encodes what the one before it left as floats: sparsify, then quantise, then pack."""

    def __init__(self, codecs: Sequence[Any]) -> None:
        self.codecs = list(codecs)

    def begin(self, message: "Message", role: str) -> None:
        for codec in self.codecs:
            if hasattr(codec, "begin"):
                codec.begin(message, role)

    def says(self, parts: tuple[Tensor, ...]) -> torch.Size | None:
        first = next((codec for codec in self.codecs if 0 not in getattr(codec, "floats", ())), self.codecs[-1])
        return first.says(parts) if isinstance(first, Stateless) else None

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return self._encode(tensor, 0)

    def _encode(self, tensor: Tensor, at: int) -> tuple[Tensor, ...]:
        codec = self.codecs[at]
        parts = codec.encode(tensor)
        if at + 1 == len(self.codecs):
            return tuple(parts)
        coded = [self._encode(part, at + 1) if i in codec.floats else (part,) for i, part in enumerate(parts)]
        return tuple(part for group in coded for part in group)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return self._decode(list(parts), 0)

    def _decode(self, parts: list[Tensor], at: int) -> Tensor:
        codec = self.codecs[at]
        if at + 1 == len(self.codecs):
            taken, parts[:] = parts[: codec.num_parts], parts[codec.num_parts :]
            return codec.decode(tuple(taken))
        mine = [self._decode(parts, at + 1) if i in codec.floats else parts.pop(0) for i in range(codec.num_parts)]
        return codec.decode(tuple(mine))

    def state(self) -> dict[str, Tensor]:
        return {f"{i}/{name}": value for i, codec in enumerate(self.codecs) for name, value in codec.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for i, codec in enumerate(self.codecs):
            codec.load({name.partition("/")[2]: value for name, value in state.items() if name.partition("/")[0] == str(i)})


class Feedback(Stateless):
    """Error feedback (Seide et al. 2014): what a lossy codec left out of one tensor is added to the next of the same name.

    For weights alone: activations and their gradients belong to other samples every time, whose errors are nobody's business.
    """

    def __init__(self, inner: Any) -> None:
        self.inner, self.num_parts = inner, inner.num_parts
        self.errors: dict[str, Tensor] = {}
        self.role = ""

    def begin(self, message: "Message", role: str) -> None:
        self.role = role
        if hasattr(self.inner, "begin"):
            self.inner.begin(message, role)

    def says(self, parts: tuple[Tensor, ...]) -> torch.Size | None:
        return self.inner.says(parts) if isinstance(self.inner, Stateless) else None

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        wanted = tensor + self.errors.get(self.role, 0)
        parts: tuple[Tensor, ...] = self.inner.encode(wanted)
        self.errors[self.role] = wanted - self.inner.decode(parts).to(wanted.dtype)
        return parts

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        decoded: Tensor = self.inner.decode(parts)
        return decoded

    def state(self) -> dict[str, Tensor]:
        return {f"error/{role}": error for role, error in self.errors.items()} | {
            f"inner/{name}": value for name, value in self.inner.state().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.errors = {name.removeprefix("error/"): t for name, t in state.items() if name.startswith("error/")}
        self.inner.load({name.removeprefix("inner/"): t for name, t in state.items() if name.startswith("inner/")})
