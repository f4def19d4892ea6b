"""Forward passes that leave no trace in running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise by the batch, as in training, and leave running statistics as they are."""
    moved = [m for m in module.modules() if getattr(m, "track_running_stats", False)]
    for each in moved:
        each.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for each in moved:
            each.track_running_stats = True  # type: ignore[assignment]
