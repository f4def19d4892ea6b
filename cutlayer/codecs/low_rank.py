"""Two thin factors instead of a matrix, found by one step of orthogonal iteration that begins where the last one ended."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import BadInput
from .base import Draws, Stateless, finite, outline, restore, shape_of


class LowRank(Stateless):
    """Positions times channels (or samples times features) as P V^T of fixed rank (Vogels et al., arXiv 1905.13727; arXiv 2602.02696).

    V is kept from tensor to tensor in training, so that it follows the channels' main directions; no residual is carried, because
    the next tensor belongs to other samples. Evaluation, which has no tensor before, takes four steps instead of one.
    """

    num_parts, floats = 3, (1, 2)

    def __init__(self, draws: Draws, rank: int = 4) -> None:
        self.draws, self.rank = draws, rank
        self.basis: Tensor | None = None

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        rows = _rows(finite(tensor).float())
        size = rows.shape[1]
        if self.basis is None or len(self.basis) != size:
            self.basis = torch.randn(size, min(self.rank, size), generator=self.draws(rows.device), device=rows.device)
        right = self.basis[:, : max(1, len(rows))]
        for _ in range(1 if self.training else 4):
            left = torch.linalg.qr(rows @ right).Q
            right = rows.T @ left
        if self.training and right.shape == self.basis.shape and bool(right.abs().sum() > 0):
            self.basis = right.clone()
        return outline(tensor), left.contiguous(), right.contiguous()

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        outlined, left, right = parts
        shape, _ = shape_of(outlined)
        if len(left) * len(right) != math.prod(shape):  # else few bytes could stand for any product
            raise BadInput(f"factors of {len(left)} and {len(right)} rows for a tensor of shape {tuple(shape)}")
        values = left @ right.mT
        if len(shape) == 4:
            n, c, h, w = shape
            values = values.view(n, h, w, c).permute(0, 3, 1, 2)
        return restore(values, outlined)

    def state(self) -> dict[str, Tensor]:
        kept = {} if self.basis is None else {"basis": self.basis}
        return {"draws": torch.tensor(self.draws.count), **kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.draws.count, self.basis = int(state["draws"]), state.get("basis")


def _rows(tensor: Tensor) -> Tensor:
    """Return (N, C, H, W) as (N H W, C), and anything else as (N, features)."""
    if tensor.dim() == 4:
        return tensor.permute(0, 2, 3, 1).reshape(-1, tensor.shape[1])
    return tensor.reshape(len(tensor), -1) if tensor.dim() else tensor.reshape(1, 1)
