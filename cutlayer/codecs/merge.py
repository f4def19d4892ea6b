"""Fewer rows at the cut: similar samples of a batch are sent as their mean, with the mean of their labels (arXiv 2509.15058)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cut import Smashed
from ..errors import BadInput
from ..reducing import Reduced
from .base import Drawing, Draws


class BatchMerge(Drawing):
    """ADC: k-means into `ratio` as many clusters as samples, whose means cross; of each, `tokens` as a share of all tokens.

    Clusters are those of pooled activations; where tokens are left out, those of the attention that each token is paid in the
    client's last block, and the tokens that a cluster pays most are kept. The gradient of a mean comes back to each of its samples
    divided by their number, and to no token that was left out. It is no codec of a tensor, as labels are merged too (into
    the share of each class); the client applies it before anything is encoded, in training only. Paddings count for nothing.
    """

    STEPS, TOLERANCE = 50, 1e-4

    def __init__(self, draws: Draws, ratio: float = 0.5, tokens: float = 1.0) -> None:
        super().__init__(draws)
        self.ratio, self.tokens = ratio, tokens

    def rows(self, n: int) -> int:
        """Return the number of merged rows for n samples."""
        return max(1, math.ceil(self.ratio * n))

    def clusters(self, rows: Tensor) -> Tensor:
        """Return the cluster (N,) of each of the rows (N, D); no cluster is empty."""
        k = self.rows(len(rows))
        first = torch.randperm(len(rows), generator=self.draws(rows.device), device=rows.device)[:k]
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

    def reduce(self, z: Smashed, y: Tensor, num_classes: int) -> Reduced:
        """Return merged activations (K, ...) with their mask if there is one, and soft labels (K, C).

        Raises BadInput where other tensors cross, targets are no classes, or tokens are to be left out of what has none.
        """
        tensors = z.detach().tensors("smashed")
        main, mask = tensors.pop("smashed"), tensors.pop("context/mask", None)
        dtype, main = main.dtype, main.float()
        if tensors:
            raise BadInput(f"codec batch_merge merges one tensor, and {', '.join(tensors)} cross here too; cut elsewhere")
        if y.dim() != 1 or y.is_floating_point():
            raise BadInput(
                f"codec batch_merge needs one class per sample, not targets of shape {tuple(y.shape)}; take another codec"
            )
        importance = self._importance(z)
        pooled = main.mean((2, 3)) if main.dim() == 4 else main.mean(1) if main.dim() == 3 else main.reshape(len(main), -1)
        member = F.one_hot(self.clusters(pooled if importance is None else importance)).float()  # (N, K)
        places = main.shape[1] if mask is not None or importance is not None else 1
        counts = member[:, :, None] * (torch.ones(len(main), 1, places) if mask is None else mask[:, None].float()).to(
            main.device
        )
        share = counts / counts.sum(0).clamp_min(1)  # (N, K, places): 1 over the samples of a cluster that are there
        merged = torch.einsum("nkp,npf->kpf", share, main.reshape(len(main), places, -1))
        there = counts.sum(0) > 0
        keep = torch.arange(places, device=main.device).expand(len(merged), -1)
        if importance is not None:
            centre = member.T @ importance / member.sum(0)[:, None]
            keep = centre.topk(max(1, math.ceil(self.tokens * places)), dim=1).indices.sort(1).values
        at = keep[:, :, None].expand(-1, -1, merged.shape[2])
        rows = merged.gather(1, at)
        shape = (len(rows), *main.shape[1:]) if importance is None else (len(rows), keep.shape[1], *main.shape[2:])
        sent = rows.reshape(shape).to(dtype)
        if main.dim() == 4 and not main.is_contiguous():
            sent = sent.contiguous(memory_format=torch.channels_last)

        def back(gradient: Tensor) -> Tensor:
            whole = torch.zeros_like(merged).scatter(1, at, gradient.reshape(rows.shape).float())
            return torch.einsum("nkp,kpf->npf", share, whole).reshape(main.shape)

        masks = {} if mask is None else {"context/mask": there.gather(1, keep)}
        soft = (member / member.sum(0)).T @ F.one_hot(y, num_classes).float()
        return Reduced({"smashed": sent, **masks}, soft, back)

    def _importance(self, z: Smashed) -> Tensor | None:
        if self.tokens == 1:
            return None
        if "importance" not in z.local:
            raise BadInput(
                f"codec batch_merge@{self.ratio}:{self.tokens} leaves tokens out, and this bottom does not say which matter; "
                "leave the second argument out, or give the bottom an _importance"
            )
        return z.local["importance"]()


def _means(rows: Tensor, nearest: Tensor, centres: Tensor) -> Tensor:
    counts = torch.bincount(nearest, minlength=len(centres))
    sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
    return torch.where((counts > 0)[:, None], sums / counts.clamp_min(1)[:, None], centres)
