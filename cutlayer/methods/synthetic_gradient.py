"""Synthetic gradients: a regressor at the client guesses the gradient at the cut (Jaderberg et al., arXiv 1608.05343)."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from ..auxiliary import squared_error
from ..client import Client, Record
from ..cut import Smashed
from ..errors import BadInput
from ..models.regressors import build_regressor
from ..program import Sends
from ..task import Batch
from ..wire import Exchange

Lesson = tuple[int, Tensor, Tensor, Tensor | None]  # step, z, targets, true gradient if it has come


@dataclass(frozen=True)
class SyntheticGradientOptions:
    """The regressor, and how often and how late it is taught."""

    regressor: Annotated[str, "what guesses the gradient: linear, deep"] = "deep"
    regressor_width: Annotated[PositiveInt, "channels of the deep regressor's hidden layers"] = 64
    regressor_lr: Annotated[Annotated[float, Field(ge=0)], "its learning rate"] = 0.01
    true_every: Annotated[PositiveInt, "the server's gradient comes back on every k-th step"] = 1
    delay: Annotated[Annotated[int, Field(ge=0)], "steps until the regressor learns from it, before which nobody waits"] = 1
    conditioned: Annotated[bool, "the regressor sees the labels (cDNI)"] = True
    normalised: Annotated[bool, "targets are divided by the running root mean square of true gradients"] = True


class SyntheticGradient:
    """z up; the client moves along a guess at once, and the regressor learns from true gradients when they are there.

    The paper's regressor is trained on gradients as they are, which shrink with the batch size; ours on their shape, and their
    size is kept apart, by each client for itself (`normalised` off is the paper's). A regressor travels with its bottom.
    """

    Options: ClassVar[type] = SyntheticGradientOptions
    needs_labels: ClassVar[bool] = False
    record_names: ClassVar[tuple[str, ...]] = ("regressor_loss",)

    def __init__(self, options: SyntheticGradientOptions, client: Client) -> None:
        self.options, self.seen, self.size = options, 0, 0.0
        self.pending: list[Lesson] = []
        module = build_regressor(options.regressor, client.task, conditioned=options.conditioned, width=options.regressor_width)
        client.add("regressor", module, squared_error, lr=options.regressor_lr)

    @staticmethod
    def comes_back(options: SyntheticGradientOptions) -> bool:
        return True

    @staticmethod
    def sends(options: SyntheticGradientOptions, round: int, step: int, seen: int) -> Sends:
        return Sends(True, seen % options.true_every == 0)

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        o, t, self.seen = self.options, self.seen, self.seen + 1
        z = client.forward(batch)
        if any(value.is_floating_point() for value in z.others.values()):
            raise BadInput("method 'synthetic_gradient' guesses one tensor, and several cross here; cut elsewhere")
        _, asks = self.sends(o, client.round, client.step, t)
        reply = yield from client.uplink(z, batch, gradient=asks, later=o.delay > 0)
        if asks:
            self.pending.append((t, z.main.detach(), batch.y, reply.tensors["cut_grad"] if reply else None))
        guess = self.guess(client, z, batch)
        loss = None
        if self.pending and t - self.pending[0][0] >= o.delay:
            loss = yield from self.lesson(client, t)
        client.update(loss, z, {"cut_grad": guess})
        return {} if loss is None else {"regressor_loss": loss.detach()}

    def guess(self, client: Client, z: Smashed, batch: Batch) -> Tensor:
        """Return the gradient (N, *cut) that the client moves along."""
        return client.predict("regressor", z, batch) * (self.size**0.5 if self.options.normalised else 1.0)

    def lesson(self, client: Client, t: int) -> Exchange[Tensor]:
        """Return the regressor's loss on the oldest step that it has not learned from."""
        number, z, y, true = self.pending.pop(0)
        if true is None:
            true = (yield from client.collect(client.step - (t - number))).tensors["cut_grad"]
        square = float(true.float().square().mean())
        self.size = 0.99 * self.size + 0.01 * square if self.size else square
        true = true * self.size**-0.5 if self.options.normalised and self.size else true
        return client.loss("regressor", Smashed(z), Batch(true, y))

    def settle(self, client: Client) -> Exchange[None]:
        """Collect what is on its way, before a turn ends or a mark is written."""
        for i, (t, z, y, true) in enumerate(self.pending):
            if true is None:
                self.pending[i] = t, z, y, (yield from client.collect(client.step - (self.seen - t))).tensors["cut_grad"]

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen, "size": self.size, "pending": [list(entry) for entry in self.pending]}

    def load(self, state: dict[str, Any]) -> None:
        self.seen, self.size, self.pending = state["seen"], state["size"], [(n, z, y, g) for n, z, y, g in state["pending"]]
