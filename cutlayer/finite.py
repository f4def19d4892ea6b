"""Which tensors hold infinity or NaN."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor


def first_not_finite(tensors: Mapping[str, Tensor], allowed: Collection[str] = ()) -> str | None:
    """Return the name of the first tensor that holds infinity or NaN and is not among the `allowed`, or None."""
    return next((name for name, tensor in tensors.items() if name not in allowed and not is_finite(tensor)), None)


def not_finite(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tensors that hold infinity or NaN."""
    return {name for name, tensor in tensors.items() if not is_finite(tensor)}


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor (of any shape) holds neither infinity nor NaN; integers never do."""
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())
