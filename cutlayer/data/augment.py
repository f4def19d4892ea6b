"""Augmentation of whole batches, on the device, from a stream of their own."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..streams import self_contained


@self_contained
def crop_flip(x: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Return images (N, C, H, W), each cropped at random from its zero-padded self and flipped with probability 1/2.

    The numbers are drawn on the CPU from `generator`, so that every device sees the same crops.
    """
    n, _, height, width = x.shape
    offsets = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
    flips = torch.rand(n, 1, generator=generator) < 0.5
    rows = offsets[0] + torch.arange(height)
    columns = offsets[1] + torch.where(flips, torch.arange(width - 1, -1, -1), torch.arange(width))
    padded = F.pad(x, (pad, pad, pad, pad))
    pixels = (rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)).view(n, 1, -1).to(x.device)
    cropped = padded.flatten(2).gather(2, pixels.expand(-1, x.shape[1], -1)).view(x.shape)
    like = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return cropped.contiguous(memory_format=like)
