"""Accuracy of the recomposed parts on a whole evaluation set."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .cut import Smashed
from .data.items import read_batch
from .data.sources import Source
from .descriptors import wait_for_descriptors
from .frozen import evaluating
from .task import Batch, Task

EVALUATION_BATCH = 500
HEAD_WEIGHT = 0.25  # of 0.1, 0.25, 0.5, 0.75 and 1 the best on average on held-out images of CIFAR-10


def ensemble(output: Tensor, head: Tensor) -> Tensor:
    """Return the network's log-probabilities (N, C, ...) and a quarter of the auxiliary head's, from logits of both.

    Both exits of a decoupled network have learned the classes, and a data owner has the head's answer before it asks the server.
    """
    return output.float().log_softmax(1) + HEAD_WEIGHT * head.float().log_softmax(1)


def evaluation_batches(source: Source, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield all samples in order; what items draw from global generators is the same in every round."""
    for step, index in enumerate(torch.arange(len(source)).split(batch_size)):
        yield read_batch(source, index, None, seed, "evaluation items", step=step)


@wait_for_descriptors
def recomposed(
    modules: Mapping[str, nn.Module],
    source: Source,
    task: Task,
    autocast: Callable[[], AbstractContextManager[Any]],
    place: Callable[[Tensor], Tensor] = lambda x: x,
    through: Callable[[Smashed], Smashed] = lambda z: z,
    batch_size: int = EVALUATION_BATCH,
    seed: int = 0,
) -> dict[str, float]:
    """Return the task's metrics of tail(top(bottom(x))) over every sample, and the auxiliary head's as auxiliary_<metric>.

    In classification also those of both together, as ensemble_<metric>. Eval mode, no augmentation; the modules' modes are put back.
    `place` lays out a batch of inputs, `through` is what becomes of what crosses on its way, if a codec is to be evaluated too.
    `seed` is that of the run.
    """
    outputs: dict[str, list[Tensor]] = {"": []}
    targets = []
    with evaluating(modules.values()), torch.no_grad(), autocast():
        for batch in evaluation_batches(source, batch_size, seed):
            z = Smashed.through(modules["bottom"], batch._replace(x=place(batch.x)))
            arrived = through(z)
            output = modules["top"](arrived.main, **arrived.others)
            outputs[""].append(modules["tail"](output) if "tail" in modules else output)
            if "auxiliary" in modules:
                head = z.into(modules["auxiliary"])
                outputs.setdefault("auxiliary_", []).append(head)
                if task.logits:
                    outputs.setdefault("ensemble_", []).append(ensemble(outputs[""][-1], head))
            targets.append(batch.y)
    y = torch.cat(targets)
    joined = {prefix: torch.cat(values).float() for prefix, values in outputs.items()}
    return {
        f"{prefix}{name}": float(metric(values, y))
        for prefix, values in joined.items()
        for name, metric in task.metrics.items()
    }
