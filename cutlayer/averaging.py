"""Averages of models, as federated learning makes them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import BadInput

State = Mapping[str, Tensor]


def average(states: Sequence[State], weights: Sequence[float], *, pooled: bool = False) -> dict[str, Tensor]:
    """Return sum(w_k state_k) / sum(w_k) entry by entry, floats in double precision, of integers the largest.

    `pooled`: the variances of BatchNorm are those of the union, v = sum(w (v_k + m_k^2)) - m^2, where plain averaging (McMahan
    et al., arXiv 1602.05629) leaves out the variance between the means. Raises BadInput if the weights do not sum above 0.
    """
    total = float(sum(weights))
    if not total > 0:
        raise BadInput(f"weights {list(weights)} of an average sum to {total}; every client must have samples")
    shares = [weight / total for weight in weights]
    merged = {name: _mix([state[name] for state in states], shares) for name in states[0]}
    if pooled:
        for name in [name for name in merged if name.endswith("running_var")]:
            mean = name.removesuffix("var") + "mean"
            seconds = [state[name].double() + state[mean].double().square() for state in states]
            centre = sum(share * state[mean].double() for share, state in zip(shares, states, strict=True))
            merged[name] = (_mix(seconds, shares) - torch.as_tensor(centre).square()).to(merged[name].dtype)
    return merged


def drift(states: Sequence[State], mean: State) -> Tensor:
    """Return how far models lie from their average: root mean square distance over the average's norm, running statistics left out."""
    names = [n for n, t in mean.items() if t.is_floating_point() and not n.rpartition(".")[2].startswith("running_")]
    apart = [sum((state[name].double() - mean[name].double()).square().sum() for name in names) for state in states]
    norm = torch.as_tensor(sum(mean[name].double().square().sum() for name in names))
    return (torch.as_tensor(sum(apart)) / len(states) / norm.clamp_min(1e-30)).sqrt()


def _mix(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return torch.stack(list(tensors)).amax(0)
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor, alpha=share)
    return total.to(first.dtype)


def mix(current: State, arrived: State, share: float) -> dict[str, Tensor]:
    """Return (1 - share) current + share arrived; of integers the larger, unless the share is 0."""
    if not share:
        return dict(current)
    return {name: _mix([current[name], arrived[name]], [1 - share, share]) for name in current}


def add_changes(current: State, changes: Sequence[tuple[float, State, State]], rate: float, total: float) -> dict[str, Tensor]:
    """Return current + rate / total * sum(w (new - old)) for (w, old, new) in changes.

    Running statistics are mixed as values with the weights w / total, never scaled by the rate; of integers the largest.
    """
    merged = {}
    for name, tensor in current.items():
        values = [new[name] for _, _, new in changes]
        shares = [weight / total for weight, _, _ in changes]
        if name.rpartition(".")[2].startswith("running_") or not tensor.is_floating_point():
            merged[name] = _mix([tensor, *values], [1 - sum(shares), *shares])
            continue
        moved = sum(
            share * (new[name].double() - old[name].double()) for share, (_, old, new) in zip(shares, changes, strict=True)
        )
        merged[name] = (tensor.double() + rate * moved).to(tensor.dtype)
    return merged


def batch_norm_entries(names: Sequence[str]) -> set[str]:
    """Return the names that belong to normalisations with running statistics, their weights and biases included."""
    prefixes = tuple(name.removesuffix("running_mean") for name in names if name.endswith("running_mean"))
    return {name for name in names if name.rpartition(".")[0] + "." in prefixes}
