"""Labels that stay home, guessed from the gradients that the tail sends up (Li et al., arXiv 2102.08504)."""

from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from ..predict import Owner
from .seen import Closed, Effort, Half, Seen, Tick


def attack(owner: Owner, seen: Seen, effort: Effort, tick: Tick) -> dict[str, Any]:
    """Return the share of labels that are those of the known sample, one of each class, whose gradient points most nearly the same way.

    Beside it the share of the most frequent class, and of two classes the area under the curve of gradients' norms (0.5: nothing).
    Raises Closed where labels are sent, or where the task has no classes.
    """
    if "tail" not in owner.modules:
        raise Closed("labels cross themselves and no gradient is asked of a tail: no gradient channel")
    if not owner.task.logits or seen.theirs.y.dim() > 1:
        raise Closed("targets are not one class for each sample")
    own, theirs = (gradients(owner, half) for half in (seen.own, seen.theirs))
    classes = seen.own.y.unique()
    known = torch.stack([own[(seen.own.y == c).nonzero()[0, 0]] for c in classes])
    guessed = classes[nearest(theirs, known)]
    y = seen.theirs.y
    found = {
        "label_accuracy": float((guessed == y).float().mean()),
        "label_accuracy_without": float(y.bincount().max() / len(y)),
    }
    if len(y.unique()) == 2:
        found |= {"norm_auc": leak_auc(theirs.norm(dim=1), y), "norm_auc_without": 0.5}
    return found


def gradients(owner: Owner, half: Half) -> Tensor:
    """Return each sample's own gradient (n, values) of the loss behind the tail, at what the tail was given."""
    assert half.features is not None
    found = []
    for features, y in zip(half.features.split(500), half.y.split(500), strict=True):
        given = features.clone().requires_grad_()
        with torch.enable_grad(), owner.autocast():
            loss = owner.task.loss(owner.modules["tail"](given).float(), y) * len(y)
        found.append(torch.autograd.grad(loss, given)[0].flatten(1))
    return torch.cat(found)


def nearest(rows: Tensor, known: Tensor) -> Tensor:
    """Return for rows (n, d) which of the known ones (k, d) has the largest cosine with each, (n,)."""
    return (F.normalize(rows, dim=1) @ F.normalize(known, dim=1).T).argmax(1)


def leak_auc(scores: Tensor, y: Tensor) -> float:
    """Return the area under the curve of scores (n,) against two classes (n,), whichever is the higher one: 0.5 to 1."""
    area = float(roc_auc_score((y == y.max()).cpu(), scores.cpu()))
    return max(area, 1 - area)
