"""How either side computes and takes a step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .frozen import still_statistics
from .streams import seeded_globals


@dataclass(frozen=True)
class Training:
    """How either side takes a step: autocast, learning rate by round, FedProx's pull (Li et al., arXiv 1812.06127), clipping.

    Without `draws` no part draws random numbers, so two threads may compute at once, who would share one generator.
    """

    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    factor: Callable[[int], float] = field(default=lambda round: 1.0)
    clip: float | None = None
    prox: float = 0.0
    seed: int = 0
    draws: bool = True
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @contextmanager
    def computing(
        self, module: nn.Module, part: str, client: int, round: int, step: int, graph: bool = True, statistics: bool = True
    ) -> Iterator[None]:
        """Autocast, and for layers that draw, as dropout does, a stream of this part, client, round and step.

        Without a graph if so wanted, and without a trace in running statistics.
        """
        still = nullcontext() if statistics else still_statistics(module)
        with (
            self.dropout(part, client, round, step),
            still,
            self.autocast(),
            torch.set_grad_enabled(graph and torch.is_grad_enabled()),
        ):
            yield

    def dropout(self, part: str, client: int, round: int, step: int = 0) -> AbstractContextManager[None]:
        """Let layers that draw, as dropout does, draw from a stream of this part, client, round and step."""
        return seeded_globals(self.seed, f"dropout {part}", client, round, step) if self.draws else nullcontext()

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        optimizer = self.make_optimizer([{"params": list(module.parameters())}])
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
        return optimizer

    def set_round(self, optimizer: torch.optim.Optimizer, round: int, scale: float = 1.0) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.factor(round) * scale

    def step(self, optimizer: torch.optim.Optimizer, anchor: Sequence[Tensor] = (), times: int = 1) -> None:
        """Take one optimizer step, or several along the same gradients, and clear them; prox pulls to where `anchor` is."""
        for parameter, home in zip(parameters_of(optimizer) if anchor else (), anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - home, alpha=self.prox)
        if self.clip is not None:
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], self.clip)
        for _ in range(times):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
