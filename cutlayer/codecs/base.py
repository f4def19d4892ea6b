"""What codecs share: checks, shapes that cost no payload, bits, and streams of random numbers."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import Diverged
from ..frame import lies_channels_last
from ..streams import stream


class Stateless:
    """The part of a codec that remembers nothing; `num_parts` tensors are sent, of which `floats` may be coded further.

    Evaluation clears `training`: then nothing is left to chance, and a tensor is coded the same way every time.
    """

    num_parts = 1
    floats: tuple[int, ...] = (0,)
    training = True
    per_sample = False  # it treats the rows of axis 0 as samples

    def says(self, parts: tuple[Tensor, ...]) -> torch.Size | None:
        """Return the shape that parts will be decoded to, before anything of it is allocated; None if that cannot be known."""
        first = parts[0]
        return first.shape if first.dtype != torch.uint8 or first.numel() or not first.dim() else shape_of(first)[0]

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass


class Draws:
    """A codec's random numbers: one generator after the other, from a stream of this end, client and role."""

    def __init__(self, seed: int = 0, purpose: str = "codec", client: int = 0) -> None:
        self.seed, self.purpose, self.client, self.count = seed, purpose, client, 0

    def __call__(self, device: torch.device) -> torch.Generator:
        self.count += 1
        return stream(self.seed, self.purpose, self.client, step=self.count, device=device)


class Drawing(Stateless):
    """The part of a codec that remembers nothing but how often it has drawn."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def state(self) -> dict[str, Tensor]:
        return {"draws": torch.tensor(self.draws.count)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.draws.count = int(state["draws"])


def finite(tensor: Tensor) -> Tensor:
    """Return the tensor; raise Diverged if any of it is NaN or infinite, which no codec may hide."""
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        raise Diverged("a tensor to be encoded holds NaN or infinity; lower lr, or set clip")
    return tensor


def outline(tensor: Tensor) -> Tensor:
    """Return an empty tensor that says another's shape, and whether it lies channels-last; its sizes cross in the header."""
    return tensor.new_empty((*tensor.shape, 0, *([1] if lies_channels_last(tensor) else [])), dtype=torch.uint8)


def shape_of(outlined: Tensor) -> tuple[torch.Size, bool]:
    """Return the shape of what was outlined, and whether it lay channels-last."""
    last = outlined.dim() == 6 and outlined.shape[-1] == 1
    return outlined.shape[: -2 if last else -1], last


def count(outlined: Tensor) -> int:
    """Return how many values an outline stands for."""
    return math.prod(shape_of(outlined)[0])


def restore(values: Tensor, outlined: Tensor) -> Tensor:
    """Return values in their order as the tensor that was outlined."""
    shape, last = shape_of(outlined)
    tensor = values.reshape(shape)
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Return codes (n,) of so many bits each as bytes (ceil(n bits / 8),), the first code in the highest bits."""
    if bits == 8:
        return codes.to(torch.uint8)
    shifts = torch.arange(bits - 1, -1, -1, device=codes.device)
    stream_of_bits = ((codes[:, None] >> shifts) & 1).flatten().to(torch.uint8)
    padded = torch.nn.functional.pad(stream_of_bits, (0, -len(stream_of_bits) % 8)).view(-1, 8)
    return (padded << torch.arange(7, -1, -1, device=codes.device, dtype=torch.uint8)).sum(1).to(torch.uint8)


def unpacked(data: Tensor, bits: int, n: int) -> Tensor:
    """Return the n codes (n,) int64 of so many bits each that bytes hold."""
    if bits == 8:
        return data.long()
    single = (data[:, None] >> torch.arange(7, -1, -1, device=data.device, dtype=torch.uint8)) & 1
    rows = single.flatten()[: n * bits].view(n, bits).long()
    return (rows << torch.arange(bits - 1, -1, -1, device=data.device)).sum(1)
