"""Labels that stay home, guessed from the gradients that the tail sends up (Li et al., arXiv 2102.08504)."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from ..predict import Owner
from ..streams import stream
from .seen import Closed, Effort, Half, Seen, Tick


def attack(owner: Owner, seen: Seen, effort: Effort, tick: Tick) -> dict[str, Any]:
    """Return the share of labels that are those of the known sample, one of each class, whose gradient points most nearly the same way.

    Beside it the share of the most frequent class, and of two classes the area under the curve of gradients' norms, also in another order.
    Raises Closed where labels are sent, or where the task has no classes.
    """
    if "tail" not in owner.modules:
        raise Closed("labels cross themselves and no gradient is asked of a tail: no gradient channel")
    if seen.theirs.y.is_floating_point() or seen.theirs.y.dim() > 1:
        raise Closed("targets are not one class for each sample")
    own, theirs = (gradients(owner, half, seen.coded, seen.batch_size) for half in (seen.own, seen.theirs))
    classes = seen.own.y.unique()
    known = torch.stack([own[(seen.own.y == c).nonzero()[0, 0]] for c in classes])
    guessed = classes[nearest(theirs, known)]
    y = seen.theirs.y
    found = {
        "label_accuracy": float((guessed == y).float().mean()),
        "label_accuracy_without": float(y.bincount().max() / len(y)),
    }
    if len(y.unique()) == 2:
        mixed = torch.randperm(len(y), generator=stream(effort.seed, "audit order")).to(y.device)
        norms = theirs.norm(dim=1)
        found |= {"norm_auc": leak_auc(norms, y), "norm_auc_without": leak_auc(norms, y[mixed])}
    return found


def gradients(owner: Owner, half: Half, coded: Callable[[str, Tensor], Tensor], batch_size: int) -> Tensor:
    """Return each sample's own gradient (n, values) of the loss behind the tail, at what the tail was given, as it arrives."""
    assert half.features is not None
    found = []
    for features, y in zip(half.features.split(batch_size), half.y.split(batch_size), strict=True):
        given = features.clone().requires_grad_()
        with torch.enable_grad(), owner.autocast():
            loss = owner.task.loss(owner.modules["tail"](given).float(), y)
        found.append(coded("feature_grad", torch.autograd.grad(loss, given)[0]).flatten(1) * len(y))
    return torch.cat(found)


def nearest(rows: Tensor, known: Tensor) -> Tensor:
    """Return for rows (n, d) which of the known ones (k, d) has the largest cosine with each, (n,)."""
    return (F.normalize(rows, dim=1) @ F.normalize(known, dim=1).T).argmax(1)


def leak_auc(scores: Tensor, y: Tensor) -> float:
    """Return the area under the curve of scores (n,) against two classes (n,), whichever is the higher one: 0.5 to 1."""
    area = float(roc_auc_score((y == y.max()).cpu(), scores.cpu()))
    return max(area, 1 - area)
