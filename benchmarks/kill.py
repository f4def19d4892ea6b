"""SIGKILL at chosen points: parties die in the middle of a run over gRPC, and come back or stay away.

Every trial is a run of three processes on this machine, a server and two clients. A victim kills itself at a point drawn from the
printed seed. If it comes back, the final weights have to be those of the uninterrupted run, bit for bit; if it stays away, those of a run
in one process that it left at the checkpoint which the server went back to. Relay and server copies in turn; rows: results/kill.jsonl.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import rows
import torch
from processes import command, free_port, positive, starting
from rich.console import Console
from trials import ENV, LIMIT_S, Trial, python

from cutlayer.building import num_steps
from cutlayer.cli import main as command_line
from cutlayer.run import data_of, split
from cutlayer.streams import stream

SCHEDULES = {"relay": "dsl_seq", "replicas": "splitfed_v1"}
CLIENTS = ("client0", "client1")
PARTIES = ("server", *CLIENTS)
PATIENCE_S = 3.0
FILES = 8  # of the first checkpoints of a party, in whose writing it is killed
Draw = Callable[[int], int]  # a number below n


class Death(NamedTuple):
    """One death: `victim` kills itself at the `at`-th event of a `point`; `also` is killed at the same time."""

    victim: str
    point: str
    at: int
    also: str = ""


def last_step(victim: str, trial: Trial) -> int:
    """Return after how many messages or batches a party's run is over."""
    steps = num_steps(trial.recipe, split(data_of(trial.recipe).train, trial.recipe).shares)
    return steps if victim == "server" else steps // 2


def in_a_round(trial: Trial, draw: Draw) -> Death:
    victim = PARTIES[draw(3)]
    return Death(victim, "step", 1 + draw(last_step(victim, trial)))


def stays_away(trial: Trial, draw: Draw) -> Death:
    victim = CLIENTS[draw(2)]
    return Death(victim, "step", 1 + draw(last_step(victim, trial)))


def after_the_last_round(trial: Trial, draw: Draw) -> Death:
    return Death(PARTIES[draw(3)], "end", 1)


def writing_a_checkpoint(trial: Trial, draw: Draw) -> Death:
    return Death(PARTIES[draw(3)], "checkpoint", 1 + draw(FILES))


def two_at_once(trial: Trial, draw: Draw) -> Death:
    first = draw(3)
    victim, also = PARTIES[first], PARTIES[(first + 1 + draw(2)) % 3]
    return Death(victim, "step", 1 + draw(last_step(victim, trial)), also)


KINDS = {
    "in a round": in_a_round,
    "in a round, for good": stays_away,
    "after the last round": after_the_last_round,
    "writing a checkpoint": writing_a_checkpoint,
    "two at once": two_at_once,
}


def party(point: str, at: int, words: list[str]) -> int:
    """Run the command line in this process, which kills itself at the `at`-th event of a point (0: never)."""
    from cutlayer import checkpoint
    from cutlayer.client import Client
    from cutlayer.outputs import Outputs
    from cutlayer.transports.grpc_client import NetworkLine
    from cutlayer.transports.host import Host

    seen = 0

    def counted(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **how: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **how)

        setattr(owner, name, call)

    serves = words[0] == "serve"
    if point == "step":
        counted(*((Host, "frame") if serves else (Client, "forward")))
    elif point == "end":
        counted(*((Outputs, "finish") if serves else (NetworkLine, "bye")))
    else:
        for name in ("save_file", "write", "write_index"):
            counted(checkpoint, name)
    return command_line(words)


def run_trial(folder: Path, kind: str, schedule: str, draw: Draw) -> dict[str, Any]:
    """Run one trial and return what happened; raises AssertionError if a weight differs, or a party hangs or fails."""
    trial = Trial(folder, free_port(), scheme=SCHEDULES[schedule])
    death, returns = KINDS[kind](trial, draw), kind != "in a round, for good"
    begin = time.monotonic()
    with starting() as start:

        def go(name: str, at: int) -> "subprocess.Popen[str]":
            more = [f"--patience={60 if returns else PATIENCE_S}"] if name == "server" else []
            with trial.log(name).open("ab") as log:
                words = ["--party", death.point, str(at), *trial.words(name, *more)]
                return start(python(__file__, *words), stdout=log, env=ENV)

        running = {name: go(name, death.at if name == death.victim else 0) for name in PARTIES}
        assert running[death.victim].wait(LIMIT_S) == -signal.SIGKILL, f"{death.victim} ended before it was killed"
        dead = [death.victim]
        if death.also:
            running[death.also].kill()
            assert running[death.also].wait(LIMIT_S) == -signal.SIGKILL, f"{death.also} ended before it was killed"
            dead.append(death.also)
        if returns:
            running |= {name: go(name, 0) for name in dead}
        for name, process in running.items():
            code = process.wait(LIMIT_S)
            assert code == 0 or (name in dead and not returns), f"{name} ended with {code}: {trial.said(name)[-2000:]}"
    number = None if returns else trial.checkpoint()
    if number is None:
        trial.check(trial.undisturbed(), CLIENTS)
    else:
        trial.check(trial.without(CLIENTS.index(death.victim), number))
    seconds = round(time.monotonic() - begin, 1)
    return {
        "kind": kind, "schedule": schedule, "victims": dead, "at": death.at, "mark": number, "seconds": seconds, "equal": True
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--party"]:
        sys.exit(party(sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of every kind")
    parser.add_argument("--only", choices=list(KINDS), help="trials of one kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the trials' folders here")
    parser.add_argument("--tiny", action="store_true", help="one trial of the first two kinds, and no rows")
    args = parser.parse_args()
    positive(args, "trials")
    console = Console()
    console.print(f"seed {args.seed}")
    kept = tempfile.TemporaryDirectory() if args.out is None else None
    out = Path(kept.name) if kept else args.out
    kinds = [args.only] if args.only else list(KINDS)
    for kind in kinds[:2] if args.tiny else kinds:
        for n in range(1 if args.tiny else args.trials):
            key = {"seed": args.seed, "kind": kind, "trial": n}
            if not args.tiny and rows.written("kill", **key):
                console.print(f"done: {kind}, {n + 1}")
                continue
            draws = stream(args.seed, f"kill {kind}", n)
            folder = out / kind.replace(" ", "-").replace(",", "") / str(n)
            row = run_trial(folder, kind, list(SCHEDULES)[n % 2], lambda below: int(torch.randint(below, (), generator=draws)))  # noqa: B023
            console.print(f"{n + 1}: {row}")
            if not args.tiny:
                rows.write("kill", {**key, **row})


if __name__ == "__main__":
    command(main)
