"""Nonsense: damaged and random frames to `loads`, and random bytes, greetings and records to a server's listening port.

No crash, no hang, no unbounded allocation, no state change: the server that was talked to trains afterwards with two clients, and its
weights are those of a run in one process. The seed is printed; rows: results/fuzz.jsonl.
"""

import argparse
import random
import resource
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import rows
import torch
from processes import command, positive
from rich.console import Console

from cutlayer.errors import BadInput
from cutlayer.join import join
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe
from cutlayer.serve import Serving
from cutlayer.transports.grpc_common import METHOD, grpc
from cutlayer.transports.session import CHUNK, RECORD, control
from cutlayer.wire import Message, dumps, loads, pack

RECIPE = {
    "scheme": "splitfed_v1", "data": "digits", "model": "resnet8", "num_train": 44, "num_test": 16, "rounds": 2, "batch_size": 8,
    "num_threads": 1, "num_clients": 2, "lr": 0.05,
}  # fmt: skip
NAMED, RECEIVED = ["client0", 7, None, "x" * 999], [0, -1, 1 << 70, "0"]
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_GROWTH = 300 << 20  # bytes of memory that nonsense may cost


def frames(seconds: float, rng: random.Random) -> tuple[int, int]:
    """Feed `loads` for some seconds; return how many frames it got, and how many of them it refused."""
    message = Message("smashed", {"smashed": torch.randn(3, 4), "labels": torch.arange(3)}, {"a": 1.0}, client=1)
    frame, end, tries, refused = dumps(pack(message, {})), time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        tries += 1
        data = bytearray(frame if rng.random() < 0.8 else rng.randbytes(rng.randrange(300)))
        for _ in range(rng.randrange(1, 6)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            data = data[: rng.randrange(len(data) + 1)]
        try:
            assert dumps(loads(bytes(data))) == bytes(data), "a frame was read that is not written so"
        except BadInput:
            refused += 1
    return tries, refused


def port(number: int, seconds: float, rng: random.Random) -> int:
    """Talk to a port for some seconds, and return how often."""
    end, tries = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        tries += 1
        if rng.random() < 0.5:
            with suppress(OSError), socket.create_connection(("127.0.0.1", number), timeout=1) as raw:
                raw.sendall((GREETING if rng.random() < 0.5 else b"") + rng.randbytes(rng.randrange(200)))
            continue
        records = [
            rng.choice([
                rng.randbytes(rng.randrange(80)),
                control(kind="hello", name=rng.choice(NAMED), life="f", received=rng.choice(RECEIVED), protocol=1),
                RECORD.pack(CHUNK, rng.randrange(4), 0, rng.randrange(1 << 50)) + rng.randbytes(30),
            ])
            for _ in range(rng.randrange(1, 5))
        ]  # fmt: skip
        with suppress(grpc.RpcError), grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
            list(channel.stream_stream(METHOD)(iter(records), timeout=2))
    return tries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of either kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="three seconds of either kind, and no rows")
    args = parser.parse_args()
    positive(args, "seconds")
    seconds, rng, console = 3.0 if args.tiny else args.seconds, random.Random(args.seed), Console()
    console.print(f"seed {args.seed}")
    recipe = make(RECIPE)
    whole = run_recipe(recipe)
    tries, refused = frames(seconds, rng)
    console.print(f"loads: {tries} frames, {refused} refused, {tries - refused} read and written again as they were")
    with tempfile.TemporaryDirectory() as folder:
        serving = Serving(recipe, Path(folder) / "server", listen="127.0.0.1:0")
        found = []
        thread = threading.Thread(target=lambda: found.append(serving.run()), daemon=True)
        thread.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        talks = port(serving.gate.port, seconds, rng)
        growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        assert growth < MAX_GROWTH, f"nonsense cost {growth} bytes of memory"
        assert not serving.host.there, "somebody was let in"
        where = f"127.0.0.1:{serving.gate.port}"
        clients = [
            threading.Thread(
                target=join, args=(recipe, Path(folder) / name), kwargs={"server": where, "name": name}, daemon=True
            )
            for name in serving.names
        ]
        for each in [*clients]:
            each.start()
        for each in [thread, *clients]:
            each.join(60)
            assert not each.is_alive(), "somebody hangs"
    for name, module in whole.modules.items():
        mine, theirs = module.state_dict(), found[0].modules[name].state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), f"{name} differs after the nonsense"
    console.print(f"port: {talks} connections, {growth / 2**20:.0f} MB more memory; the run after it has the same weights")
    if not args.tiny:
        row = {
            "seed": args.seed,
            "seconds": seconds,
            "frames": tries,
            "refused": refused,
            "connections": talks,
            "growth_bytes": growth,
        }
        rows.write("fuzz", row)


if __name__ == "__main__":
    command(main)
