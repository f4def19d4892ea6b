"""No cut at all: the whole network at each data owner, as the baselines have it; only weights travel, if anything does."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..client import Client, Record
from ..cut import Smashed
from ..program import Method
from ..task import Batch, Task
from ..wire import Exchange


@dataclass(frozen=True)
class UncutOptions:
    """Nothing to choose."""


class Uncut(Method):
    """Forward, loss, update, all at home: centralised with one client, FedAvg with averages (arXiv 1602.05629)."""

    Options: ClassVar[type] = UncutOptions
    needs_labels: ClassVar[bool] = False
    record_names: ClassVar[tuple[str, ...]] = ("loss",)
    uncut: ClassVar[bool] = True

    def __init__(self, options: UncutOptions, client: Client) -> None:
        client.add("output", nn.Identity(), output_loss, travels=False)

    @staticmethod
    def comes_back(options: UncutOptions) -> bool:
        return False

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        yield from ()
        loss = client.loss("output", client.forward(batch), batch)
        client.update(loss)
        return {"loss": loss.detach()}


def output_loss(output: nn.Module, z: Smashed, batch: Batch, task: Task) -> Tensor:
    """Return the task's loss of what the whole network gives."""
    return task.loss(output(z.main), batch.y)
