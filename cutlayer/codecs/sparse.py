"""Only the largest values of each sample, and where they are; the gradient comes back at the same places, without saying where."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import BadInput
from .base import Drawing, Draws, finite, outline, packed, restore, shape_of, unpacked

if TYPE_CHECKING:
    from ..message import Message

Key = tuple[int, str]


class TopK(Drawing):
    """The `ratio` largest magnitudes of each sample as float32, with packed indices or a bitmap, whichever is smaller.

    With `alpha` (RandTopk, Zheng et al., arXiv 2305.18469) places are drawn: the largest share 1 - alpha, all others alpha; evaluation
    takes the largest. `peer` is the codec of the activations whose places a gradient shares (keyed by step), or none.
    """

    num_parts, floats = 3, (1,)
    per_sample = True
    KEPT = 64  # activations whose gradient may still come

    def __init__(self, draws: Draws, ratio: float = 0.1, alpha: float = 0.0) -> None:
        super().__init__(draws)
        self.ratio, self.alpha, self.training = ratio, alpha, True
        self.peer: TopK | None = None
        self.places: dict[Key, Tensor] = {}
        self.key: Key = (0, "")
        self.keeps = False

    def begin(self, message: "Message", role: str) -> None:
        """Say what the next tensor belongs to."""
        self.key = message.step, role.partition("/")[2]
        self.keeps = role.startswith("smashed") and (message.reply != "none" or message.open)

    def encode(self, tensor: Tensor) -> tuple[Tensor, ...]:
        n = len(tensor) if tensor.dim() else 1
        rows = finite(tensor).float().reshape(n, tensor.numel() // max(n, 1))
        d = rows.shape[1]
        if self.peer is not None:
            return (
                outline(tensor),
                rows.gather(1, self.peer.places.pop(self.key)).flatten(),
                tensor.new_empty(0, dtype=torch.uint8),
            )
        k = min(d, max(1, math.ceil(self.ratio * d)))
        index = self._choose(rows, k).sort(1).values
        self._keep(index)
        values = rows.gather(1, index).flatten()
        bits = bits_for(d)
        if k * bits <= d:
            return outline(tensor), values, packed(index.flatten(), bits)
        bitmap = torch.zeros(n, d, dtype=torch.long, device=rows.device).scatter_(1, index, 1)
        return outline(tensor), values, packed(bitmap.flatten(), 1)

    def _choose(self, rows: Tensor, k: int) -> Tensor:
        d = rows.shape[1]
        largest = rows.abs().topk(k, dim=1).indices if rows.numel() else rows.new_empty((len(rows), k), dtype=torch.long)
        if not self.alpha or not self.training or k == d or not rows.numel():
            return largest
        weights = torch.full_like(rows, self.alpha / (d - k)).scatter_(1, largest, (1 - self.alpha) / k)
        return torch.multinomial(weights, k, generator=self.draws(rows.device))

    def _keep(self, index: Tensor) -> None:
        if self.keeps:
            self.places[self.key] = index
            while len(self.places) > self.KEPT:
                del self.places[next(iter(self.places))]

    def decode(self, parts: tuple[Tensor, ...]) -> Tensor:
        outlined, values, where = parts
        shape, _ = shape_of(outlined)
        n = shape[0] if shape else 1
        d = math.prod(shape) // n if n else 0
        k = len(values) // n if n else 0
        if d and not k:  # else nothing could stand for any number of zeros
            raise BadInput(f"{len(values)} values for {n} samples of {d}; top_k sends one of each at least")
        rows = values.view(n, k)
        if self.peer is not None:
            index = self.peer.places.pop(self.key)
        elif k * bits_for(d) <= d:
            index = unpacked(where, bits_for(d), n * k).view(n, k)
        else:
            index = unpacked(where, 1, n * d).view(n, d).nonzero()[:, 1].view(n, k)
        self._keep(index)
        return restore(rows.new_zeros(n, d).scatter_(1, index, rows), outlined)


def bits_for(d: int) -> int:
    """Return the bits of an index below d."""
    return max(1, math.ceil(math.log2(d))) if d > 1 else 1
