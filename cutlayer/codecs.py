"""Fewer bytes at the cut: small encode/decode objects outside autograd, so gradients pass straight through."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import RunFailed
from .named import find, made
from .wire import Codec


class Stateless:
    """The part of a codec that remembers nothing."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass


class Identity(Stateless):
    """Sends the dtype that the sender computed in."""

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (tensor,)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].clone()


class Float16(Stateless):
    """Two bytes per value, saturating at 65504."""

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        largest = torch.finfo(torch.float16).max
        return (finite(tensor).clamp(-largest, largest).to(torch.float16),)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float()


class Float8(Stateless):
    """One byte per value and one power-of-two scale per tensor, saturating (Micikevicius et al., arXiv 2209.05433).

    The scale is the largest power of two that keeps the tensor inside the format, so scaling is exact and a second pass
    changes nothing; the paper allows any scale.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.largest = torch.finfo(dtype).max
        # decoding through 256 values is twice as fast on a CPU as the conversion, and the same bits
        self.values = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).float()

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        tensor = finite(tensor).float()
        amax = tensor.abs().amax() if tensor.numel() else tensor.new_zeros(())
        exponent = torch.floor(torch.log2(self.largest / amax.double())).clamp(-126, 126).nan_to_num(0.0)
        scale = torch.where(amax > 0, torch.exp2(exponent), 1.0).float()
        codes = (tensor * scale).clamp_(-self.largest, self.largest).to(self.dtype)
        return codes.view(torch.uint8), scale.reshape(1)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        codes, scale = parts
        if codes.is_cuda:
            return codes.view(self.dtype).float() / scale
        flat = codes.permute(0, 2, 3, 1) if codes.dim() == 4 and not codes.is_contiguous() else codes
        values = self.values.take(flat.reshape(-1).long()).div_(scale).reshape(flat.shape)
        return values.permute(0, 3, 1, 2) if flat is not codes else values


def finite(tensor: Tensor) -> Tensor:
    """Return the tensor; raise RunFailed if any of it is NaN or infinite, which no codec may hide."""
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        raise RunFailed("a tensor to be encoded holds NaN or infinity; lower lr, or set clip")
    return tensor


class Entry(NamedTuple):
    """A row of the table: how a codec is made for a role, and one line about it."""

    build: Callable[[str], Codec]
    line: str


def _float8(role: str) -> Codec:
    # a gradient needs range, an activation precision
    return Float8(torch.float8_e5m2 if role.endswith("grad") else torch.float8_e4m3fn)


CODECS: dict[str, Entry] = {
    "identity": Entry(lambda role: Identity(), "what was computed is sent, in its own dtype"),
    "float16": Entry(lambda role: Float16(), "2 bytes per value, saturating"),
    "float8": Entry(_float8, "1 byte per value and a scale: e4m3 for activations, e5m2 for gradients"),
    "float8_e4m3": Entry(lambda role: Float8(torch.float8_e4m3fn), "1 byte per value: 4 exponent bits, 3 of mantissa"),
    "float8_e5m2": Entry(lambda role: Float8(torch.float8_e5m2), "1 byte per value: 5 exponent bits, 2 of mantissa"),
}


def build(names: Mapping[str, str]) -> dict[str, Codec]:
    """Return fresh codecs for one end of one client, by role family; raises BadInput on an unknown codec."""
    built = {}
    for role, name in names.items():
        row = find("codec", name, CODECS)
        built[role] = made("codec", name, getattr(row, "build", row), Codec, role)  # type: ignore[type-abstract]
    return built
