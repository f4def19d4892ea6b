"""Shifting weights along a random direction that is drawn again from its seed instead of being kept."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .streams import stream

if TYPE_CHECKING:
    from .client import Client


class Shift:
    """The weights a client trains, moved by epsilon u and back; u ~ N(0, I) belongs to the client, its step and the query.

    Only one layer's part of u exists at a time. `exact` keeps a copy of the weights to go back to; else going back may round.
    """

    def __init__(self, client: "Client", query: int, epsilon: float, exact: bool = False) -> None:
        self.parameters, self.epsilon, self.now = client.trained(), epsilon, 0
        self.key = client.training.seed, f"direction {query}", client.id, client.round, client.step
        self.home = [p.detach().clone() for p in self.parameters] if exact else None

    def direction(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each parameter with its part of u."""
        seed, purpose, client, round, step = self.key
        device = self.parameters[0].device
        draw = stream(seed, purpose, client, round, step, device=device)
        for parameter in self.parameters:
            yield parameter, torch.randn(parameter.shape, generator=draw, device=device, dtype=parameter.dtype)

    @torch.no_grad()
    def to(self, sign: int) -> None:
        """Stand at weights + sign epsilon u."""
        if sign == 0 and self.home is not None:
            for parameter, home in zip(self.parameters, self.home, strict=True):
                parameter.copy_(home)
        else:
            for parameter, u in self.direction():
                parameter.add_(u, alpha=(sign - self.now) * self.epsilon)
        self.now = sign

    def add(self, to: Sequence[Tensor], coefficient: float) -> None:
        """Add coefficient times u."""
        for into, (_, u) in zip(to, self.direction(), strict=True):
            into.add_(u, alpha=coefficient)


def zeros(client: "Client") -> list[Tensor]:
    """Return what directions are added up in."""
    return [torch.zeros_like(parameter) for parameter in client.trained()]
