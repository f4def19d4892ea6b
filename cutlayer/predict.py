"""Split inference: the bottom at the data owner, the top at the server, and the same answers as from the whole network."""

import math
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .building import Builder, placement, training
from .cut import Smashed
from .data.description import describe
from .data.sources import Source
from .errors import BadInput, RunFailed
from .evaluate import ensemble, evaluation_batches
from .expected import SPARE_BYTES
from .fit import fitted
from .frame import MAX_BYTES
from .handshake import about, disagreement
from .integrity import check_weights
from .meter import Meter
from .recipes.recipe import Recipe
from .revoked import Revoked
from .rows import Layout
from .run import data_of, parts_of, task_of
from .task import Batch, Task, accuracy
from .trained_data import check_trained_data
from .transports.grpc_client import NetworkLine
from .transports.grpc_common import Tls
from .transports.grpc_server import Gate
from .transports.member import Again, Finished
from .transports.session import MAX_CONTROL
from .wire import Message, loads, pack, unpack

BATCH = 500
LOCAL = "these are the answers of the auxiliary head, not of the whole network"


@dataclass(frozen=True)
class Answers:
    """The outputs (n, ...) for n samples, and in classification the class (n, ...) of each sample or position."""

    outputs: Tensor
    classes: Tensor | None

    def __len__(self) -> int:
        return len(self.outputs)


def load_into(module: nn.Module, path: Path) -> nn.Module:
    """Fill a module with trained weights, in eval mode; raises BadInput naming the file if it is not there or of another module."""
    if not path.exists():
        raise BadInput(f"{path} is not there; train first, or name the folder that run, serve or join wrote")
    check_weights(path)
    try:
        module.load_state_dict(load_file(path))
    except Exception as error:
        raise BadInput(f"{path} does not fit this recipe ({str(error).partition(chr(10))[0]})") from error
    return module.eval()


def weights_of(folder: Path, name: str, client: int) -> Path:
    """Return the file of a client's part, of all clients' where they share it."""
    own = folder / f"{name}-{client}.safetensors"
    return own if own.exists() else folder / f"{name}.safetensors"


class Answering:
    """A server that answers batches with the outputs of a trained top, for every client that asks, until it is stopped."""

    def __init__(
        self, recipe: Recipe, weights: Path, *, listen: str, names: list[str], tls: Tls | None, revoked: Revoked | None = None
    ) -> None:
        torch.set_num_threads(recipe.num_threads)
        self.recipe, self.autocast = recipe, training(recipe).autocast
        data = data_of(recipe)
        check_trained_data(weights.parent, describe(data))
        self.top = load_into(parts_of(recipe, data).top, weights / "top.safetensors").to(recipe.device)
        mine = about(recipe, data)
        self.revoked = revoked
        barred = revoked.reason if revoked is not None else lambda identity: None
        self.gate = Gate(listen, names, lambda name, hello: disagreement(mine, hello, name), tls=tls, barred=barred)
        self.answered = 0

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Answer until `stop` says so."""
        try:
            while not stop():
                if self.revoked is not None:
                    self.revoked.refresh()
                    self.gate.turn_away_barred()
                try:
                    event = self.gate.events.get(timeout=0.1)
                except queue.Empty:
                    continue
                received = event.received
                if received is None or event.wrong or self.gate.peers[event.client].session is not event.session:
                    continue
                if received.frame is not None:
                    try:
                        self._answer(event.client, unpack(loads(received.frame, checked=False), {}))
                    except Exception as error:  # a stranger's message may raise anything
                        self.gate.turn_away(event.client, f"this top cannot take that ({str(error).partition(chr(10))[0]})")
                event.session.take(received)
        finally:
            self.gate.close(1.0)

    def _answer(self, k: int, message: Message) -> None:
        tensors = {name.partition("/")[2] or "main": t.to(self.recipe.device) for name, t in message.tensors.items()}
        with torch.no_grad(), self.autocast():
            output = self.top(tensors.pop("main"), **tensors)
        self.gate.post(k, pack(Message("outputs", {"outputs": output}, client=k, step=message.step), {}))
        self.answered += len(output)


class Remote:
    """The top as a client reaches it over a line; `layout` is that of the top's outputs."""

    def __init__(self, line: NetworkLine, layout: Layout) -> None:
        self.line, self.layout, self.step = line, layout, 0
        line.session.max_message = lambda: MAX_CONTROL
        self.k = line.connect()

    def __call__(self, z: Smashed, num_samples: int) -> Tensor:
        """Return the top's outputs for the activations of a batch; raises BadInput if the server sends something else."""
        self.step += 1
        if self.layout.fixed:
            rows = max(len(z.main), num_samples * self.layout.few[0])
            largest = SPARE_BYTES + torch.float64.itemsize * rows * math.prod(self.layout.sample_shape)
            self.line.session.max_message = lambda: largest
        else:
            self.line.session.max_message = lambda: MAX_BYTES
        asked = pack(Message("predict", z.tensors("smashed"), client=self.k, step=self.step), {})
        while True:  # a server that was started again knows nothing of what it was asked
            epoch = self.line.session.epoch
            self.line.send(asked, 0)
            while self.line.session.epoch == epoch:
                try:
                    packed = self.line.poll()
                except (Again, Finished) as error:
                    raise BadInput(
                        f"the server at {self.line.address} trains, and answers nothing; name one with --predict"
                    ) from error
                if packed is not None and packed.message.step == self.step:
                    return self._checked(unpack(packed, {}), num_samples)

    def _checked(self, message: Message, num_samples: int) -> Tensor:
        output = message.tensors.get("outputs")
        if output is None or not output.is_floating_point() or not self.layout.fits(output.shape, num_samples):
            brought = "no outputs" if output is None else f"outputs of shape {tuple(output.shape)} and {output.dtype}"
            raise BadInput(
                f"the server at {self.line.address} sent {brought} for {num_samples} samples; those of two have shape "
                f"{self.layout.few}, so both ends need the same recipe"
            )
        return output


class Owner:
    """A data owner's trained modules, the client's own where a folder holds those of several; `parts` are as they were drawn."""

    def __init__(self, recipe: Recipe, weights: Path, client: int = 0) -> None:
        torch.set_num_threads(recipe.num_threads)
        self.recipe, self.data = recipe, data_of(recipe).to(recipe.device)
        check_trained_data(weights.parent, describe(self.data))
        self.parts, source = parts_of(recipe, self.data), self.data.train
        builder = Builder(recipe, self.parts, source, fitted(task_of(recipe), recipe, self.parts, source), Meter())
        made = builder.owner(client, torch.arange(1)).client
        self.task, self.autocast, self.place = made.task, builder.training.autocast, placement(recipe)
        names = [n for n in ("bottom", "tail", "auxiliary") if n in made.modules]
        self.modules: dict[str, Any] = {
            name: load_into(made.modules[name], weights_of(weights, name, client)) for name in names
        }

    def batches(self, source: Source) -> Iterator[Batch]:
        for batch in evaluation_batches(source, BATCH, self.recipe.seed):
            yield batch._replace(x=self.place(batch.x))

    def outputs(self, batch: Batch, remote: Remote | None, together: bool = False) -> Tensor:
        """Return the whole network's outputs (N, ...), without a server the auxiliary head's, or the ensemble of both."""
        with torch.no_grad(), self.autocast():
            z = Smashed.through(self.modules["bottom"], batch)
        if remote is None:
            with torch.no_grad(), self.autocast():
                return z.into(self.modules["auxiliary"]).float()
        output = remote(z, len(batch.y))
        with torch.no_grad(), self.autocast():
            if "tail" in self.modules:
                try:
                    output = self.modules["tail"](output)
                except Exception as error:  # a stranger's server may send any dtype
                    why = str(error).partition("\n")[0]
                    raise BadInput(
                        f"the tail cannot take the server's outputs ({why}); both ends need the same recipe"
                    ) from error
            return (ensemble(output, z.into(self.modules["auxiliary"])) if together else output).float()


def predict(
    recipe: Recipe, weights: Path, *, server: str | None, name: str, tls: Tls | None = None, local: bool = False, together: bool = False,
    patience: float = 10.0, say: Callable[[str], None] = lambda line: None,
) -> tuple[Answers, dict[str, float]]:  # fmt: skip
    """Return the answers for the recipe's test set, and the task's metrics on them.

    With `local`, if no server is named or it cannot be reached within `patience` seconds, they are those of the auxiliary head, and that
    is said. With `together` they are `ensemble`'s.
    Raises BadInput, and RunFailed if the server stays away.
    """
    owner = Owner(recipe, weights)
    asked = "--local" if local else "--ensemble" if together else None
    if asked is not None and "auxiliary" not in owner.modules:
        raise BadInput(f"{asked} needs an auxiliary head, and {weights} has none; train with a method that has one")
    if together and not owner.task.logits:
        raise BadInput("--ensemble adds log-probabilities, and this task is no classification; leave it out")
    if together and server is None:
        raise BadInput(
            "--ensemble adds the head's answer to the whole network's, which --server gives; name it, or leave this out"
        )
    source = owner.data.test
    if server is None:
        say(f"no server is named: {LOCAL}")
    line = (
        NetworkLine(server, name, about(recipe, owner.data, dealt=False), tls=tls, patience=patience, say=say)
        if server is not None
        else None
    )
    found: list[Tensor] = []
    try:
        try:
            remote = Remote(line, owner.task.layouts["features"]) if line is not None else None
            found = [owner.outputs(batch, remote, together) for batch in owner.batches(source)]
        except RunFailed as error:
            if not local:
                raise
            say(f"{error}: {LOCAL}")
            found = [owner.outputs(batch, None) for batch in owner.batches(source)]
    finally:
        if line is not None:
            line.close()
    outputs = torch.cat(found)
    y = torch.cat([batch.y for batch in owner.batches(source)])
    metrics = {metric: float(function(outputs, y)) for metric, function in owner.task.metrics.items()}
    return Answers(outputs, classes(owner.task, outputs)), metrics


def classes(task: Task, outputs: Tensor) -> Tensor | None:
    """Return the class (n, ...) of the largest of logits (n, C, ...), or None where the task's outputs are none."""
    return outputs.argmax(1) if task.logits or accuracy in task.metrics.values() else None


def write(answers: Answers, path: Path) -> None:
    """Write one line a sample: in classification the answer, of several positions each with a blank between, and then all outputs."""
    rows = answers.outputs.reshape(len(answers), -1).tolist()
    columns = {"sample": list(map(str, range(len(rows))))}
    if answers.classes is not None:
        columns["answer"] = [" ".join(map(str, row)) for row in answers.classes.reshape(len(answers), -1).tolist()]
    header = ",".join([*columns, *(f"output{i}" for i in range(len(rows[0])))])
    lines = [",".join([*own, *(f"{value:.9g}" for value in row)]) for *own, row in zip(*columns.values(), rows, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
