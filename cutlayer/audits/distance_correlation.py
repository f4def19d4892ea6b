"""Distance correlation of inputs and activations (Székely et al. 2007; Vepakomma et al. 2020, NoPeek)."""

from typing import Any

import torch
from torch import Tensor

from ..predict import Owner
from ..streams import stream
from .seen import Closed, Effort, Seen, Tick

ROWS = 1000  # distances of all pairs are kept


def attack(owner: Owner, seen: Seen, effort: Effort, tick: Tick) -> dict[str, Any]:
    """Return the figure, and that of the same activations in another order: few rows have a high one by chance."""
    if seen.theirs.x is None:
        raise Closed("inputs are tokens, between which there is no distance")
    x, z = (t[:ROWS].flatten(1) for t in (seen.theirs.x, seen.theirs.z))
    mixed = torch.randperm(len(z), generator=stream(effort.seed, "audit order"))
    return {
        "distance_correlation": distance_correlation(x, z),
        "distance_correlation_without": distance_correlation(x, z[mixed]),
    }


def distance_correlation(x: Tensor, z: Tensor) -> float:
    """Return the plug-in estimate for rows of x (n, a) and z (n, b), 0 to 1; 0 if one of them is constant.

    It is biased upwards, the more so the fewer rows: independent rows of 10 normal values have about 0.6 at n = 64.
    """
    a, b = (_centred(t.double()) for t in (x, z))
    spread = (a.square().mean() * b.square().mean()).sqrt()
    return float(((a * b).mean().clamp_min(0) / spread).sqrt()) if spread > 0 else 0.0


def _centred(rows: Tensor) -> Tensor:
    distances = torch.cdist(rows, rows)
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()
