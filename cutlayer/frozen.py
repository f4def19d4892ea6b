"""Forward passes that leave no trace: in running statistics, or in modules' modes."""

from collections.abc import Collection, Iterable, Iterator
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


@contextmanager
def modes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put every submodule back into its own mode afterwards: one that was frozen in eval mode stays so."""
    was = {module: module.training for each in modules for module in each.modules()}
    try:
        yield
    finally:
        for module, mode in was.items():
            module.training = mode


@contextmanager
def evaluating(modules: Collection[nn.Module]) -> Iterator[None]:
    """Compute in eval mode, and put every submodule back into its own mode afterwards."""
    with modes_kept(modules):
        for module in modules:
            module.eval()
        yield
