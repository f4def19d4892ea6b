"""Fewer bits for each value: float16, bfloat16, float8, and small floats of any split between exponent and mantissa."""

import torch
from torch import Tensor

from .base import Stateless, count, finite, outline, packed, restore, unpacked


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


class BFloat16(Stateless):
    """Two bytes per value with the range of float32."""

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return (finite(tensor).to(torch.bfloat16),)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float()


class Float8(Stateless):
    """One byte per value and one power-of-two scale per tensor, saturating (Micikevicius et al., arXiv 2209.05433).

    The scale is the largest power of two that keeps the tensor inside the format, so scaling is exact and a second pass
    changes nothing; the paper allows any scale.
    """

    num_parts, floats = 2, ()

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


class Minifloat(Stateless):
    """A small float with `exponent` and `mantissa` bits, saturating, subnormal, rounded to nearest even; no code for infinity.

    Without sizes the split of 8 bits, and always the bias, is chosen for the tensor at hand: the largest value lies at or just
    below the largest code, and of 2 to 5 exponent bits those with the smallest squared error are taken (arXiv 2107.09786 as it
    is remembered; its text was not available). A tensor without negative values has no sign bit, but one more of mantissa.
    """

    num_parts, floats = 3, ()

    def __init__(self, exponent: int = 0, mantissa: int = 0) -> None:
        self.exponent, self.mantissa = exponent, mantissa

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        t = finite(tensor).double()
        signed = bool((t < 0).any())
        splits = [(self.exponent, self.mantissa)] if self.exponent else [(e, 7 - e + (not signed)) for e in range(2, 6)]
        top = float(t.abs().max()) if t.numel() else 0.0
        best: tuple[float, Tensor, list[int]] | None = None
        for e, m in splits:
            bias = 2**e - 1 - (int(torch.tensor(top, dtype=torch.float64).log2().floor()) if top else 0)
            codes = _codes(t.abs(), e, m, bias)
            error = float((_values(codes, e, m, bias) - t.abs()).square().sum()) if len(splits) > 1 else 0.0
            if best is None or error < best[0]:
                best = error, codes, [e, m, bias, int(signed)]
        assert best is not None
        _, codes, how = best
        if signed:
            codes = codes | ((t < 0).long() << (how[0] + how[1]))
        bits = how[0] + how[1] + signed
        return outline(tensor), packed(codes.flatten(), bits), torch.tensor(how, dtype=torch.int16, device=tensor.device)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        shape, data, how = parts
        e, m, bias, signed = (int(value) for value in how)
        codes = unpacked(data, e + m + signed, count(shape))
        values = _values(codes & ((1 << (e + m)) - 1), e, m, bias)
        return restore((values * (1 - 2 * (codes >> (e + m)))).float(), shape)


def _codes(t: Tensor, e: int, m: int, bias: int) -> Tensor:
    """Return the codes of values >= 0: the exponent's bits above the mantissa's, so that rounding up carries over by itself."""
    exponent = torch.where(t > 0, torch.frexp(t)[1] - 1, 1 - bias).double().clamp(1 - bias, 2**e - 1 - bias)
    mantissa = torch.round(t * torch.exp2(m - exponent))
    code = (exponent + bias - 1) * 2**m + mantissa
    return code.clamp_max(2 ** (e + m) - 1).long()


def _values(codes: Tensor, e: int, m: int, bias: int) -> Tensor:
    exponent, mantissa = codes >> m, (codes & ((1 << m) - 1)).double()
    normal = torch.exp2((exponent - bias).double()) * (1 + mantissa / 2**m)
    return torch.where(exponent == 0, mantissa * 2.0 ** (1 - bias - m), normal)
