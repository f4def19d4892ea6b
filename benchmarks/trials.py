"""Trials over gRPC: a server and its clients as processes, and the weights that their run must end with."""

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from processes import ENVIRONMENT
from safetensors.torch import load_file

from cutlayer.fit import fitted
from cutlayer.parties import build
from cutlayer.program import program
from cutlayer.recipes import load
from cutlayer.recipes.recipe import Recipe
from cutlayer.run import data_of, parts_of, run_recipe, split, task_of
from cutlayer.transports import inprocess
from cutlayer.wire import Message

FIELDS: dict[str, Any] = {
    "data": "digits", "model": "resnet8", "num_train": 96, "num_test": 32, "rounds": 3, "warmup_rounds": 0, "batch_size": 16,
    "num_threads": 1, "num_clients": 2, "diagnose_every": 0, "checkpoint_every": 2, "augment": False,
}  # fmt: skip
ENV = {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent.parent)}
LIMIT_S = 120.0
Weights = Mapping[str, Mapping[str, torch.Tensor]]  # by part and name


class Stop(Exception):
    """The run in one process has come to the checkpoint that is wanted."""


class Trial:
    """One run of the demo's recipe over gRPC in a folder, with a folder and a log for each party."""

    def __init__(self, folder: Path, port: int, **fields: Any) -> None:
        self.folder, self.port, self.fields = folder, port, {**FIELDS, **fields}
        self.recipe: Recipe = load("demo", **self.fields, data_dir=None)
        self.names = tuple(f"client{k}" for k in range(self.recipe.num_clients))
        folder.mkdir(parents=True, exist_ok=True)

    def words(self, party: str, *more: str) -> list[str]:
        """Return the words of a party's command: `serve` for "server", `join` for the name of a client."""
        flags = [f"--{name.replace('_', '-')}={value!s}" for name, value in self.fields.items() if name != "data"]
        where = f"127.0.0.1:{self.port}"
        own = ["serve"] if party == "server" else ["join"]
        ends = [f"--listen={where}"] if party == "server" else [f"--server={where}", f"--as={party}"]
        return [*own, "demo", *flags, "--insecure", *ends, f"--out={self.folder / party}", *more]

    def log(self, party: str) -> Path:
        """Return the file that a party's output is appended to."""
        return self.folder / f"{party}.log"

    def said(self, party: str) -> str:
        """Return what a party printed, as one line of text, since a terminal's width breaks it."""
        return " ".join(self.log(party).read_text().split())

    def checkpoint(self) -> int:
        """Return the number of the newest checkpoint from which the others went on without a client."""
        found = re.findall(r"the others go on without it from mark (\d+)", self.said("server"))
        assert found, self.said("server")[-2000:]
        return int(found[-1])

    def undisturbed(self) -> Weights:
        """Return the weights of the same run in one process."""
        return {name: module.state_dict() for name, module in run_recipe(self.recipe).modules.items()}

    def without(self, victim: int, checkpoint: int) -> Weights:
        """Return the weights of a run in one process that a client left at the checkpoint of that number (0: before it began)."""
        recipe = self.recipe
        torch.set_num_threads(recipe.num_threads)
        data = data_of(recipe)
        parts, clients = parts_of(recipe, data), split(data.train, recipe)

        def parties() -> Any:
            made = build(recipe, parts, clients, data.train, fitted(task_of(recipe), recipe, parts, data.train), lambda: None)
            owners = zip(made.clients, made.methods, made.batches, strict=True)
            return made, {c.id: program(c, m, b, recipe.checkpoint_every) for c, m, b in owners}

        whole, programs = parties()
        state, seen = whole.state(), 0

        def on_mark(server: Any) -> None:
            nonlocal state, seen
            seen += 1
            if seen == checkpoint:
                state = whole.state()
                raise Stop

        if checkpoint:
            whole.server.on_mark = on_mark
            with suppress(Stop):
                inprocess.run(programs, whole.server, whole.ends, whole.meter)
        rest, programs = parties()
        rest.load(state)
        rest.server.handle(Message("left", client=victim))
        del programs[victim]
        inprocess.run(programs, rest.server, rest.ends, rest.meter)
        return {name: module.state_dict() for name, module in rest.modules().items()}

    def check(self, wanted: Weights, clients: tuple[str, ...] = ()) -> None:
        """Raise AssertionError unless the server's weights, and those of these clients' own modules, are the same bits."""
        for party in ("server", *clients):
            for part, state in wanted.items():
                path = self.folder / party / "weights" / f"{part}.safetensors"
                if party != "server" and not path.exists():
                    assert part == "top", f"{party} has no weights of {part}"
                    continue
                mine = load_file(path)
                assert mine.keys() == state.keys(), part
                assert all(torch.equal(mine[key], state[key]) for key in mine), f"{part} of {party} differs"


def python(*words: str) -> list[str]:
    """Return a command of this Python."""
    return [sys.executable, *words]
