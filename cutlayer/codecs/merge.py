"""Fewer rows at the cut: similar samples of a batch are sent as their mean, with the mean of their labels (arXiv 2509.15058)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import BadInput
from .base import Drawing, Draws


class BatchMerge(Drawing):
    """The first step of ADC: k-means over pooled activations into `ratio` as many clusters as samples; means cross.

    The gradient of a mean comes back to each of its samples divided by their number. It is no codec of a tensor, as labels are
    merged too (into the share of each class); the client applies it before anything is encoded, in training only.
    """

    STEPS, TOLERANCE = 50, 1e-4

    def __init__(self, draws: Draws, ratio: float = 0.5) -> None:
        super().__init__(draws)
        self.ratio = ratio

    def clusters(self, z: Tensor) -> Tensor:
        """Return the cluster (N,) of each sample; no cluster is empty."""
        rows = (z.mean((2, 3)) if z.dim() == 4 else z.mean(1) if z.dim() == 3 else z.reshape(len(z), -1)).float()
        k = max(1, math.ceil(self.ratio * len(rows)))
        first = torch.randperm(len(rows), generator=self.draws(z.device), device=z.device)[:k]
        centres = rows[first]
        for _ in range(self.STEPS):
            nearest = torch.cdist(rows, centres).argmin(1)
            moved = _means(rows, nearest, centres)
            change, centres = float((moved - centres).norm()), moved
            if change < self.TOLERANCE:
                break
        distance, nearest = torch.cdist(rows, centres).min(1)
        for empty in (torch.bincount(nearest, minlength=k) == 0).nonzero().flatten().tolist():
            # from a cluster that has others, the sample that lies worst gets one of its own
            spare = torch.bincount(nearest, minlength=k)[nearest] > 1
            at = int(torch.where(spare, distance, -1.0).argmax())
            nearest[at], distance[at] = empty, 0.0
        return nearest

    def reduce(self, tensors: Mapping[str, Tensor], y: Tensor, num_classes: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return merged activations, soft labels (K, C), and what gives each sample its share (N, K) of a merged gradient.

        Raises BadInput where several tensors cross or targets are no classes.
        """
        if set(tensors) != {"smashed"}:
            raise BadInput(f"codec batch_merge merges one tensor, and {', '.join(tensors)} cross here; cut elsewhere")
        if y.dim() != 1 or y.is_floating_point():
            raise BadInput(
                f"codec batch_merge needs one class per sample, not targets of shape {tuple(y.shape)}; take another codec"
            )
        z = tensors["smashed"]
        cluster = F.one_hot(self.clusters(z.detach())).to(torch.float32)
        share = cluster / cluster.sum(0)
        merged = (share.T @ z.detach().float().reshape(len(z), -1)).view(-1, *z.shape[1:])
        if z.dim() == 4 and not z.is_contiguous():
            merged = merged.contiguous(memory_format=torch.channels_last)
        return {"smashed": merged}, share.T @ F.one_hot(y, num_classes).float(), share


def _means(rows: Tensor, nearest: Tensor, centres: Tensor) -> Tensor:
    counts = torch.bincount(nearest, minlength=len(centres)).clamp_min(1)
    sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
    return torch.where((torch.bincount(nearest, minlength=len(centres)) > 0)[:, None], sums / counts[:, None], centres)
