"""Attacks on a server while honest clients train: silent sockets, a silent client, floods of messages, headers and huge messages.

The server and its honest clients are processes of their own; the attacker is in this one. Strangers must change nothing: the final
weights are those of one process. A listed client that attacks is left out: the final weights are those of a run in one process that it
left at the checkpoint which the server went back to. Rows say what an attack cost in seconds and memory: results/hostile.jsonl.
"""

import argparse
import itertools
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import rows
import torch
from processes import command, free_port, starting
from rich.console import Console
from trials import ENV, LIMIT_S, Trial, python

from cutlayer.building import batches_per_round
from cutlayer.data.partition import split
from cutlayer.errors import BadInput, RunFailed
from cutlayer.frame import FIXED, MAGIC, VERSION
from cutlayer.handshake import about
from cutlayer.recipes.recipe import make
from cutlayer.run import data_of, parts_of
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.member import Start, told_to_start
from cutlayer.transports.session import CHUNK, CHUNK_BYTES, FRAME, RECORD, Closed
from cutlayer.wire import Message, dumps, pack

FILES, SOCKETS = 256, 300  # descriptors that the server may have, and connections of a stranger
SILENCE_S = 3.0
ATTACKER = 2  # the client that attacks, of three
Frames = Callable[[NetworkLine, Start], Iterable[object]]  # sends one message for each item


class Attack(NamedTuple):
    """One attack: `run` goes on until the event; the run's clients, the server's flags, and the files that the server may open."""

    run: Callable[[Trial, threading.Event], int]
    num_clients: int
    flags: tuple[str, ...] = ()
    files: int | None = None


def nothing(trial: Trial, over: threading.Event) -> int:
    """Let an undisturbed run end, for the figures of the others."""
    return 0


def silent_sockets(trial: Trial, over: threading.Event) -> int:
    """Open more connections than the server may open files, and say nothing on them."""
    with ExitStack() as opened:
        for _ in range(SOCKETS):
            with suppress(OSError):
                opened.enter_context(socket.create_connection(("127.0.0.1", trial.port), timeout=5))
        over.wait()
    return SOCKETS


def silent_client(trial: Trial, over: threading.Event) -> int:
    """Connect as a client, say what it holds, and send nothing."""
    with suppress(BadInput, RunFailed, Closed), connected(trial) as line:
        told_to_start(line)
        over.wait()
    return 1


def message_flood(trial: Trial, over: threading.Event) -> int:
    """Send the batches of a round and go on with more, neither waiting for room nor taking a reply."""
    recipe, data = trial.recipe, data_of(trial.recipe)
    samples = len(split(data.train, recipe).shares[ATTACKER])
    batches = float(batches_per_round(recipe, samples))
    numbers = {"done": 0.0, "version": 0.0, "weight": float(samples), "batches": batches, "left": batches}
    index = torch.arange(recipe.batch_size)
    z = parts_of(recipe, data).bottom(data.train.batch(index, None).x).detach()

    def messages() -> Iterator[Message]:
        yield Message("sync", {}, numbers, client=ATTACKER)
        for step in itertools.count():
            yield Message("smashed", {"smashed": z, "labels": torch.zeros_like(index)}, {}, ATTACKER, step, "wait")

    def frames(line: NetworkLine, start: Start) -> Iterator[object]:
        for message in messages():
            frame = dumps(replace(pack(message, {}), incarnation=start.incarnation))
            yield line.session.put(FRAME, [frame], label=1 + (start.incarnation << 32))

    return flood(trial, over, frames)


def header_flood(trial: Trial, over: threading.Event) -> int:
    """Send frames whose headers announce 2,500 roles with 255 empty parts each."""
    body = b"\x04\x00sync" + 2_500 * (b"\x01\x00a" + b"\x01\xff" + 255 * (b"\x00\x00\x01" + bytes(8)))
    size = -(-(FIXED.size + len(body)) // 64) * 64
    frame = (FIXED.pack(MAGIC, VERSION, 0, 0, size, ATTACKER, 0, 0, 0, 10_000, 0) + body).ljust(size, b"\0")
    return flood(trial, over, lambda line, start: (line.session.put(FRAME, [frame]) for _ in itertools.count()))


def huge_messages(trial: Trial, over: threading.Event) -> int:
    """Announce messages of 4 GB, and send their first megabyte."""

    def frames(line: NetworkLine, start: Start) -> Iterator[object]:
        while True:
            with line.session.changed:
                line.session.last += 1
                record = RECORD.pack(CHUNK, line.session.last, 0, 1 << 32) + bytes(CHUNK_BYTES)
                line.session.unacked.append((line.session.last, [record]))
                line.session.changed.notify_all()
            yield record

    return flood(trial, over, frames)


ATTACKS = {
    "none": Attack(nothing, 2),
    "silent sockets": Attack(silent_sockets, 2, files=FILES),
    "silent client": Attack(silent_client, 3, (f"--turn-timeout={SILENCE_S:g}",)),
    "message flood": Attack(message_flood, 3),
    "header flood": Attack(header_flood, 3),
    "huge messages": Attack(huge_messages, 3),
}


@contextmanager
def connected(trial: Trial) -> Iterator[NetworkLine]:
    """Connect as the attacking client, with the greeting of an honest one."""
    recipe = make({**trial.recipe.flat(), "transport": "grpc"})
    line = NetworkLine(f"127.0.0.1:{trial.port}", f"client{ATTACKER}", about(recipe), tls=None, patience=20.0)
    line.samples = len(split(data_of(recipe).train, recipe).shares[ATTACKER])
    try:
        line.connect()
        line.hello(lambda: [])
        yield line
    finally:
        line.close()


def flood(trial: Trial, over: threading.Event, frames: Frames) -> int:
    """Send frames as fast as they go, and connect again whenever this client is turned away; return how many were sent."""
    sent = 0
    while not over.is_set():
        try:
            with connected(trial) as line:
                for _ in frames(line, told_to_start(line)):
                    sent += 1
                    if line.fatal:
                        raise line.fatal
                    if over.is_set():
                        break
                    while line.session.unsettled() > 64 << 20 and not line.fatal and not over.is_set():  # of this process
                        time.sleep(0.01)
        except (BadInput, Closed):
            over.wait(0.1)
        except RunFailed:
            break
    return sent


def run_trial(folder: Path, kind: str) -> dict[str, Any]:
    """Run one trial and return what it cost; raises AssertionError if a weight differs, or a party hangs or fails."""
    attack, over, sent = ATTACKS[kind], threading.Event(), [0]
    trial = Trial(folder, free_port(), scheme="splitfed_v1", num_clients=attack.num_clients)
    honest = trial.names[:ATTACKER]
    limit = attack.files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (attack.files, attack.files)))
    attacker = threading.Thread(target=lambda: sent.append(attack.run(trial, over)))
    with starting() as start:

        def go(name: str, *more: str, **how: Any) -> Any:
            with trial.log(name).open("ab") as log:
                return start(python("-m", "cutlayer.cli", *trial.words(name, *more)), stdout=log, env=ENV, **how)

        begin = time.monotonic()
        server = go("server", "--patience=20", *attack.flags, preexec_fn=limit)
        while "listening" not in trial.said("server") and server.poll() is None:
            time.sleep(0.1)
        attacker.start()
        clients = {name: go(name) for name in honest}
        for name, process in clients.items():
            assert process.wait(LIMIT_S) == 0, f"{name}: {trial.said(name)[-2000:]}"
        over.set()
        _, status, usage = os.wait4(server.pid, 0)
        server.returncode = os.waitstatus_to_exitcode(status)
        assert server.returncode == 0, trial.said("server")[-2000:]
        seconds = time.monotonic() - begin
        attacker.join(LIMIT_S)
        assert not attacker.is_alive(), "the attacker is still at work"
    number = trial.checkpoint() if attack.num_clients > ATTACKER else None
    trial.check(trial.undisturbed() if number is None else trial.without(ATTACKER, number), honest)
    figures = {"seconds": round(seconds, 1), "server_peak_bytes": 1024 * usage.ru_maxrss}
    return {"attack": kind, "attempts": sent[-1], "mark": number, **figures, "equal": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(ATTACKS), help="one attack")
    parser.add_argument("--out", type=Path, help="keep the trials' folders here")
    parser.add_argument("--tiny", action="store_true", help="one attack, and no rows")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        for kind in [args.only] if args.only else ["header flood"] if args.tiny else ATTACKS:
            row = run_trial((args.out or Path(temporary)) / kind.replace(" ", "-"), kind)
            console.print(row)
            if not args.tiny:
                rows.write("hostile", row)


if __name__ == "__main__":
    command(main)
