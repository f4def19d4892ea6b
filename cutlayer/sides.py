"""The two sides of a run across processes: what the server's process is made of, and what a client's is."""

import math
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .building import Builder, batches_per_round
from .cut import Parts
from .data.items import check_reproducible
from .data.partition import Partition
from .data.sources import Data, Source
from .errors import Advice, BadInput, Diverged
from .expected import Expected
from .finite import first_not_finite, not_finite
from .fit import crossing, fitted
from .labels_cross import warn_if_inputs_cross
from .meter import Meter
from .outputs import Outputs, Result
from .parties import Parties
from .private import write
from .program import program
from .recipes.legal import switched_off
from .recipes.options import method_class
from .recipes.recipe import Recipe
from .record_names import RecordNames
from .rounds import Progress, Rounds, own_names
from .server import Server
from .server_checks import ServerChecks
from .stored import Stored
from .task import Task
from .transports.host import Host
from .transports.link import Link
from .transports.member import Member, Start
from .wire import Codecs, Packed


def member(
    recipe: Recipe,
    parts: Parts,
    task: Task,
    source: Source,
    share: Tensor,
    k: int,
    out: Path,
    tick: Callable[[], None] = lambda: None,
) -> Member:
    """Return client k on its share (indices) of a source; it keeps its own states in `out`."""
    meter = Meter(recipe.device)
    builder = Builder(recipe, parts, source, fitted(task, recipe, parts, source), meter, tick)
    warn_if_inputs_cross(recipe, parts, source)
    client, method, batches = builder.owner(k, share)
    client.codecs = builder.codecs(k, "client")
    life = lambda: program(client, method, batches, recipe.checkpoint_every)  # noqa: E731
    reproducible = check_reproducible(source, recipe.seed)
    part = builder.server_part()
    features = crossing(parts, source)["feature_grad"].shape[1:] if parts.tail is not None else None
    may_freeze = part is not None and part.may_freeze
    schedule = builder.schedule(recipe.num_clients)
    checks = ServerChecks(client, method, schedule, batches.per_round, features, recipe.batch_size, may_freeze)
    return Member(client, method, client.codecs, meter, life, out / "marks", checks, reproducible)


class ServerSide:
    """The server of a run with its marks and outputs; `host` is what a transport gives messages to."""

    def __init__(
        self,
        recipe: Recipe,
        parts: Parts,
        task: Task,
        clients: Partition,
        source: Source,
        out: Path,
        *,
        release: str = "",
        data: Data | None = None,
        progress: Progress | None = None,
        post: Callable[[int, Packed | Start], None],
        **how: Any,
    ) -> None:
        for note in switched_off(recipe):
            warnings.warn(note, Advice, stacklevel=2)
        self.out, self.outputs = out, Outputs(recipe, out, clients, release, data)
        self.rounds = Rounds(recipe, source, self.outputs, recipe.rounds, progress, None)
        meter = Meter(recipe.device)
        builder = Builder(recipe, parts, source, fitted(task, recipe, parts, source), meter)
        template = builder.owner(0, torch.arange(1)).client
        ends: list[tuple[Codecs, Codecs]] = [({}, builder.codecs(k, "server")) for k in range(recipe.num_clients)]
        server = builder.server(recipe.num_clients, template, {k: end for k, (_, end) in enumerate(ends)})
        if isinstance(server.part, Stored):
            server.part.max_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2 / recipe.num_clients
        self.parties = Parties([], [], [], server, ends, meter, template=template)
        self.rounds.follow(self.parties)
        self.outputs.reproducible = check_reproducible(source, recipe.seed)
        link = Link(ends, meter, self.outputs.tap())
        self.infinite = not_finite(tensors_of(server))  # as built
        expected = Expected(
            template, server.handlers, record_names(recipe, parts, task), crossing(parts, source), source.labels, recipe.batch_size,
            partial(batches_per_round, recipe), {k: len(share) for k, share in enumerate(clients.shares)},
        )  # fmt: skip
        self.host = Host(server, link, self, lambda: self.parties.labels, post, expected, **how)
        self.host.incarnation, self.host.incarnated = self._last(), self._number
        server.on_mark, server.on_round = self._mark, self._round

    def built(self) -> Any:
        """Return the state before anything was done."""
        return {"parties": self.parties.state(), "outputs": {"records": "[]", "elapsed": 0.0, "marks": 0}, "done": 0}

    def newest(self) -> tuple[Any, int]:
        """Return the newest mark and its number, or None and 0."""
        found = checkpoint.marks(self.out / "marks")
        return (checkpoint.load(found[-1], self.parties.meter.device), int(found[-1].name)) if found else (None, 0)

    def load(self, state: Any) -> None:
        """Go back to a mark."""
        self.rounds.resume(state)

    def check_finite(self) -> None:
        """Raise Diverged if a loss of this round, or a weight that the server holds, is infinity or NaN."""
        server = self.parties.server
        for name, value in server.record().items():
            if not math.isfinite(value):
                raise self.diverged(f"{'train_loss' if name == 'loss' else name} is {value}")
        weight = first_not_finite(tensors_of(server), self.infinite)
        if weight is not None:
            raise self.diverged(f"{weight!r} at the server holds infinity or NaN")

    def diverged(self, what: str) -> Diverged:
        """Return the error of a run in which something is not finite; `what` says what."""
        return self.rounds.diverged(what)

    def finish(self) -> Result:
        """Write what is left to write, with what the clients measured, and return the result."""
        meter = self.parties.meter
        for figures in self.host.finished.values():
            add(meter, figures)
            self.outputs.reproducible &= figures["reproducible"]
        return self.outputs.finish(self.parties)

    def _mark(self, server: Server) -> None:
        self.check_finite()
        self.rounds.mark(server)
        self.host.marked()

    def _round(self, server: Server) -> None:
        self.check_finite()
        self.rounds.done = server.schedule.round + 1
        self.rounds.end(server)

    def _last(self) -> int:
        path = self.out / "incarnation"
        try:
            return int(path.read_text()) if path.exists() else 0
        except ValueError:
            raise BadInput(f"{path} is damaged; write into it a number that is larger than it was") from None

    def _number(self, incarnation: int) -> None:
        write(self.out / "incarnation", str(incarnation))


def record_names(recipe: Recipe, parts: Parts, task: Task) -> RecordNames:
    """Return the names that the clients of a recipe may record."""
    method = method_class(recipe.method)
    client_loss = parts.tail is not None or getattr(method, "uncut", False)
    return RecordNames(getattr(method, "record_names", None), own_names(task), client_loss)


def tensors_of(server: Server) -> dict[str, Tensor]:
    """Return the weights that a server holds, by name: of its tops, and of its newest client model."""
    tops = {f"top-{k}": top for k, top in server.copies.items()} or {"top": server.top}
    found = {f"{name}.{key}": tensor for name, top in tops.items() for key, tensor in top.state_dict().items()}
    return found | server.weights


def add(meter: Meter, figures: Mapping[str, Any]) -> None:
    """Add a client's seconds and memory to a meter; its bytes were counted here too."""
    for name, seconds in figures["seconds"].items():
        if name.startswith("client") or name in ("codec", "wait"):
            meter.seconds[name] += seconds
    for table, into in (("peak", meter.peak), ("kept", meter.kept), ("left", meter.left)):
        into["client"] = max(into["client"], figures[table].get("client", 0))
    for table, total in (("held", meter.held), ("steps", meter.steps), ("samples", meter.samples)):
        total["client"] += figures[table].get("client", 0)
