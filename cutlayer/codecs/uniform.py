"""Uniform quantisation to a few bits, rounded by chance so that the mean is right."""

from typing import Literal

import torch
from torch import Tensor

from .base import Drawing, Draws, count, finite, outline, packed, restore, unpacked


class Uniform(Drawing):
    """2, 4 or 8 bits per value between a tensor's smallest and largest, and these two.

    Stochastic rounding has the mean of what was encoded; nearest has the smaller error, and is what evaluation sees.
    """

    num_parts, floats = 3, ()

    def __init__(self, draws: Draws, bits: int, rounding: Literal["stochastic", "nearest"] = "stochastic") -> None:
        super().__init__(draws)
        self.bits, self.rounding = bits, rounding

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        t = finite(tensor).float()
        low, high = torch.aminmax(t) if t.numel() else (t.new_zeros(()), t.new_zeros(()))
        # double, so that the largest code gives back the largest value and a second pass the same codes
        v = (t.double() - low) / ((high.double() - low) / (2**self.bits - 1)).clamp_min(1e-300)
        nearest = torch.round(v)
        if self.rounding == "stochastic" and self.training:
            chance = torch.rand(v.shape, generator=self.draws(v.device), device=v.device)
            drawn = torch.floor(v) + (chance < v - torch.floor(v))
            nearest = torch.where((v - nearest).abs() < 1e-6, nearest, drawn)
        return outline(tensor), packed(nearest.long().flatten(), self.bits), torch.stack([low, high])

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        shape, data, ends = parts
        low, high = ends.double()
        values = low + unpacked(data, self.bits, count(shape)) * ((high - low) / (2**self.bits - 1))
        return restore(values.float(), shape)
