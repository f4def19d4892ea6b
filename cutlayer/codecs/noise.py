"""Noise at the cut: each sample is clipped to a norm, and Gaussian noise is added."""

import torch
from torch import Tensor

from .base import Drawing, Draws, finite


class GaussianNoise(Drawing):
    """Samples of norm at most `clip`, plus noise of standard deviation sigma times clip; the gradient passes straight through.

    It comes first in a chain: a codec after it sees what is private already (post-processing).
    """

    def __init__(self, draws: Draws, sigma: float = 0.01, clip: float = 10.0) -> None:
        super().__init__(draws)
        self.sigma, self.clip = sigma, clip

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        t = finite(tensor).float()
        norms = t.reshape(len(t), -1).norm(dim=1).clamp_min(1e-12) if t.dim() else t.abs().reshape(1)
        scale = (
            (self.clip / norms).clamp_max(1.0).view(-1, *[1] * (t.dim() - 1))
            if t.dim()
            else (self.clip / norms).clamp_max(1.0)[0]
        )
        noise = torch.randn(t.shape, generator=self.draws(t.device), device=t.device)
        out = t * scale + self.sigma * self.clip * noise
        if t.dim() == 4 and not t.is_contiguous():
            out = out.contiguous(memory_format=torch.channels_last)
        return (out,)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float()
