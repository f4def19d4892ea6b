"""What happens when a round ends and at a mark: records, evaluation, progress, and stopping in time."""

import math
import time
from collections.abc import Callable
from typing import Any

from . import codecs
from .building import placement
from .cut import Smashed
from .data.sources import Source
from .errors import BadInput, Diverged
from .evaluate import recomposed
from .outputs import Outputs
from .parties import Parties
from .recipes.recipe import Recipe
from .server import Server
from .steps import as_computed, merge
from .task import Task
from .wire import Message, pack, unpack

Progress = Callable[[int, int, dict[str, Any] | None], None]  # steps done, steps in all, the record of a finished round


class Paused(Exception):
    """The run stopped at a mark because its time is over; it goes on where it stopped when it is started again."""


class Rounds:
    """Counts steps, and is what the server calls: `end` after every round, `mark` when nothing is under way."""

    def __init__(
        self, recipe: Recipe, source: Source, outputs: Outputs, steps: int, progress: Progress | None, deadline: float | None
    ) -> None:
        self.recipe, self.source, self.outputs, self.steps, self.deadline = recipe, source, outputs, steps, deadline
        self.progress: Progress = progress or (lambda done, steps, record: None)
        self.done = 0
        self.parties: Parties | None = None

    def follow(self, parties: Parties) -> None:
        """Be called by these parties' server."""
        self.parties = parties
        parties.server.on_round, parties.server.on_mark = self.end, self.mark

    def tick(self) -> None:
        """Count a training step."""
        self.done += 1
        self.progress(self.done, self.steps, None)

    def end(self, server: Server) -> None:
        """Record a finished round, evaluated if it is its turn; raises Diverged if a figure is not finite."""
        assert self.parties is not None
        round = server.schedule.round
        record: dict[str, Any] = {"round": round, **means(server)}
        for name, value in record.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}")
        if server.schedule.plan.evaluated(round) and self.source.held_out is not None:
            task, autocast = self.parties.one.task, server.training.autocast
            place, through = placement(self.recipe), as_evaluated(self.recipe)
            seed, held_out = self.recipe.seed, self.source.held_out
            found = [recomposed(m, held_out, task, autocast, place, through, seed=seed) for m in self.parties.models()]
            record |= {name: sum(each[name] for each in found) / len(found) for name in found[0]}
            if len(found) > 1:
                record |= {
                    f"{name}_{end.__name__}": end(each[name] for each in found) for name in found[0] for end in (min, max)
                }
        self.outputs.round(record, self.parties.meter)
        self.progress(self.done, self.steps, record)

    def diverged(self, what: str) -> Diverged:
        """Return the error of a run in which something is not finite; `what` says what."""
        assert self.parties is not None
        return Diverged(
            f"{what} in round {self.parties.server.schedule.round}; lower lr (now {self.recipe.lr}) or set clip; earlier rounds are kept"
        )

    def mark(self, server: Server) -> None:
        """Write a mark; raises Paused if the time is over and the run is not."""
        assert self.parties is not None
        self.outputs.mark(self.parties, self.done)
        if self.deadline is not None and time.monotonic() > self.deadline and server.schedule.round < self.recipe.rounds:
            raise Paused

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a mark."""
        assert self.parties is not None
        try:
            self.parties.load(state["parties"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise BadInput(
                f"the marks in {self.outputs.out} are of other parts than these, or of one process where this run has several or the other "
                "way round; choose another out, or delete it"
            ) from error
        self.outputs.load(state["outputs"])
        # everybody says hello again, and whoever was in the middle of a turn is told again to go
        waiting = state["parties"]["server"]["waiting"]
        clients = [client.id for client in self.parties.clients] or list(self.parties.labels)
        self.parties.meter.again = {("up", k) for k in clients} | {("down", k) for k in clients if k not in waiting}
        self.done = int(state["done"])


def as_evaluated(recipe: Recipe) -> Callable[[Smashed], Smashed]:
    """Return what evaluation does to what crosses: nothing, or with `compress_eval` what the codec does, without chance."""
    codec = codecs.build(recipe.codec, recipe.seed).get("smashed") if recipe.compress_eval else None
    if codec is None:
        return lambda z: z
    for each in getattr(codec, "codecs", [codec]):
        each.training = False
    end = {"smashed": codec}

    def through(z: Smashed) -> Smashed:
        arrived = unpack(pack(Message("smashed", z.tensors("smashed")), end), end)
        leaves = as_computed(merge([arrived], "smashed"), arrived)
        return Smashed(leaves.pop("main"), leaves)

    return through


def own_names(task: Task) -> set[str]:
    """Return the names in a round's record that only the server writes."""
    own = {"round", "train_loss", "bytes", "seconds", "seconds_total", "simulated_seconds"}
    return own | {name + end for name in task.metrics for end in ("", "_min", "_max")}


def means(server: Server) -> dict[str, float]:
    """Return the means of a round: the server's loss as train_loss, and what the clients recorded, each client alike.

    With a tail the loss is known to the clients alone, and comes with their records.
    """
    found = {name: [value] for name, value in server.record().items()}
    for record in server.records.values():
        for name, value in record.items():
            found.setdefault(name, []).append(value)
    return {name if name != "loss" else "train_loss": sum(values) / len(values) for name, values in found.items()}
