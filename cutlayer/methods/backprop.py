"""Conventional split learning: the gradient at the cut comes back from the server (Gupta & Raskar, arXiv 1810.06060)."""

from dataclasses import dataclass
from typing import ClassVar

from ..client import Client, Record
from ..program import Method
from ..task import Batch
from ..wire import Exchange


@dataclass(frozen=True)
class BackpropOptions:
    """Nothing to choose."""


class Backprop(Method):
    """z up, its gradient down, one update: equal to training the uncut model."""

    Options: ClassVar[type] = BackpropOptions
    needs_labels: ClassVar[bool] = False
    record_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: BackpropOptions, client: Client) -> None:
        pass

    @staticmethod
    def comes_back(options: BackpropOptions) -> bool:
        return True

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        z = client.forward(batch)
        reply = yield from client.uplink(z, batch)
        assert reply is not None
        client.update(z=z, cut_grad=reply.tensors)
        return {}
