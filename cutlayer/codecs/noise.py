"""Noise at the cut: each sample is clipped to a norm, and Gaussian noise is added."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..message import family
from .base import Drawing, Draws, finite

if TYPE_CHECKING:
    from ..message import Message


class GaussianNoise(Drawing):
    """Samples of norm at most `clip`, plus noise of standard deviation sigma times clip; the gradient passes straight through.

    It comes first in a chain: a codec after it sees what is private already (post-processing). Evaluation only clips.
    """

    per_sample = True

    def __init__(self, draws: Draws, sigma: float = 0.01, clip: float = 10.0) -> None:
        super().__init__(draws)
        self.sigma, self.clip = sigma, clip
        self.nodes: Tensor | None = None

    def begin(self, message: "Message", role: str) -> None:
        """Take notice of graphs, each of which is one sample whatever the number of its nodes."""
        self.nodes = message.tensors.get("context/nodes") if family(role) == role else None

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        t = finite(tensor).float()
        squares = t.reshape(len(t) if t.dim() else 1, -1).square().sum(1)
        if self.nodes is not None:
            owner = torch.arange(len(self.nodes), device=t.device).repeat_interleave(self.nodes)
            squares = squares.new_zeros(len(self.nodes)).index_add(0, owner, squares)[owner]
        scale = (self.clip / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)
        out = t * scale.view([-1, *[1] * (t.dim() - 1)] if t.dim() else [])
        if self.training:
            out += self.sigma * self.clip * torch.randn(t.shape, generator=self.draws(t.device), device=t.device)
        if t.dim() == 4 and not t.is_contiguous():
            out = out.contiguous(memory_format=torch.channels_last)
        return (out,)

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[0].float()
