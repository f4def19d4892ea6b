"""SIGKILL at random steps: a party dies in the middle of a run over gRPC, and comes back or stays away.

Every trial is a run of three processes on this machine, a server and two clients. The victim kills itself at a step drawn from the
printed seed. If it comes back, the final weights have to be those of the uninterrupted run, bit for bit; if it stays away, those of a run
in one process that it left at the mark which the server went back to. Relay and server copies in turn; rows: results/kill.jsonl.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import rows
import torch
from processes import ENVIRONMENT, command, free_port, positive, starting
from rich.console import Console
from safetensors.torch import load_file

from cutlayer.building import num_steps
from cutlayer.cli import main as command_line
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
SCHEDULES = {"relay": "dsl_seq", "replicas": "splitfed_v1"}
NAMES = ("client0", "client1")
PATIENCE_S = 3.0
LIMIT_S = 120.0


class Stop(Exception):
    """The run in one process has come to the mark that is wanted."""


def recipe_of(schedule: str) -> Recipe:
    """Return the recipe of the trials under a schedule."""
    return load("demo", **FIELDS, scheme=SCHEDULES[schedule], data_dir=None)


def without(recipe: Recipe, victim: int, mark: int) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of a run in one process that a client left at the mark of that number (0: before it began)."""
    torch.set_num_threads(recipe.num_threads)
    data = data_of(recipe)
    parts, clients = parts_of(recipe, data), split(data.train, recipe)

    def parties() -> Any:
        made = build(recipe, parts, clients, data.train, fitted(task_of(recipe), recipe, parts, data.train), lambda: None)
        owners = zip(made.clients, made.methods, made.batches, strict=True)
        return made, {c.id: program(c, m, b, recipe.checkpoint_every) for c, m, b in owners}

    whole, programs = parties()
    state, marks = whole.state(), 0

    def on_mark(server: Any) -> None:
        nonlocal state, marks
        marks += 1
        if marks == mark:
            state = whole.state()
            raise Stop

    if mark:
        whole.server.on_mark = on_mark
        with suppress(Stop):
            inprocess.run(programs, whole.server, whole.ends, whole.meter)
    rest, programs = parties()
    rest.load(state)
    rest.server.handle(Message("left", client=victim))
    del programs[victim]
    inprocess.run(programs, rest.server, rest.ends, rest.meter)
    return {name: module.state_dict() for name, module in rest.modules().items()}


def party(at: int, words: list[str]) -> int:
    """Run the command line in this process, which kills itself when it has seen `at` messages or batches (0: never)."""
    from cutlayer.client import Client
    from cutlayer.transports.host import Host

    seen = 0

    def counted(function: Any) -> Any:
        def call(*args: Any, **how: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **how)

        return call

    if words[0] == "serve":
        Host.frame = counted(Host.frame)  # type: ignore[method-assign]
    else:
        Client.forward = counted(Client.forward)  # type: ignore[method-assign]
    return command_line(words)


def trial(folder: Path, schedule: str, victim: str, returns: bool, at: int) -> dict[str, Any]:
    """Run one trial and return what happened; raises AssertionError if a weight differs, or a party hangs or fails."""
    recipe = recipe_of(schedule)
    port = free_port()
    flags = [f"--{k.replace('_', '-')}={v!s}" for k, v in {**FIELDS, "scheme": SCHEDULES[schedule]}.items() if k != "data"]
    base = ["demo", *flags, "--insecure"]
    words = {"server": ["serve", *base, f"--listen=127.0.0.1:{port}", f"--patience={PATIENCE_S if not returns else 60}"]}
    words |= {name: ["join", *base, f"--server=127.0.0.1:{port}", f"--as={name}"] for name in NAMES}
    env = {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent.parent)}

    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with starting() as start:

        def go(name: str, kill_at: int) -> "subprocess.Popen[str]":
            with (folder / f"{name}.log").open("ab") as log:
                own = [sys.executable, __file__, "--party", str(kill_at), *words[name], f"--out={folder / name}"]
                return start(own, stdout=log, env=env)

        running = {name: go(name, at if name == victim else 0) for name in ("server", *NAMES)}
        assert running[victim].wait(LIMIT_S) == -signal.SIGKILL, f"{victim} ended before it was killed"
        if returns:
            running[victim] = go(victim, 0)
        for name, process in running.items():
            code = process.wait(LIMIT_S)
            assert code == 0 or (name == victim and not returns), f"{name} ended with {code}: {(folder / name).name}.log"
    log = (folder / "server.log").read_text()
    if returns:
        wanted = {name: module.state_dict() for name, module in run_recipe(recipe).modules.items()}
        mark = None
    else:
        found = re.search(r"the others go on without it\s+from mark (\d+)", log)
        assert found, log[-2000:]
        mark = int(found[1])
        wanted = without(recipe, NAMES.index(victim), mark)
    for part, state in wanted.items():
        mine = load_file(folder / "server" / "weights" / f"{part}.safetensors")
        assert mine.keys() == state.keys(), part
        assert all(torch.equal(mine[key], state[key]) for key in mine), f"{part} differs"
    seconds = round(time.monotonic() - begin, 1)
    return {
        "schedule": schedule,
        "victim": victim,
        "returns": returns,
        "at": at,
        "mark": mark,
        "seconds": seconds,
        "equal": True,
    }


def last_step(schedule: str, victim: str) -> int:
    """Return after how many messages or batches a party's run is over."""
    recipe = recipe_of(schedule)
    data = data_of(recipe)
    steps = num_steps(recipe, split(data.train, recipe).shares)
    return steps if victim == "server" else steps // 2


def main() -> None:
    if sys.argv[1:2] == ["--party"]:
        sys.exit(party(int(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of either kind: coming back, and staying away")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the trials' folders here")
    parser.add_argument("--tiny", action="store_true", help="one trial of either kind, and no rows")
    args = parser.parse_args()
    positive(args, "trials")
    console = Console()
    console.print(f"seed {args.seed}")
    generator = torch.Generator().manual_seed(args.seed)
    kept = tempfile.TemporaryDirectory() if args.out is None else None
    out = Path(kept.name) if kept else args.out
    trials = 1 if args.tiny else args.trials
    for n in range(2 * trials):
        returns, schedule = n < trials, ("relay", "replicas")[n % 2]
        victims = ("server", *NAMES) if returns else NAMES
        victim = victims[int(torch.randint(len(victims), (), generator=generator))]
        at = 1 + int(torch.randint(last_step(schedule, victim), (), generator=generator))
        row = trial(out / str(n), schedule, victim, returns, at)
        console.print(f"{n + 1}: {row}")
        if not args.tiny:
            rows.write("kill", {"seed": args.seed, "trial": n, **row})


if __name__ == "__main__":
    command(main)
