"""Does the virtual clock tell the truth: five short runs over gRPC on a slow line, predicted and measured.

Speeds of client and server are taken from a run on the bare line: multiply-adds over the seconds of each side's forward and backward
passes. Then five runs on lines of other widths and latencies are predicted in one process and measured in two, from the first round's end
to the last one's. The line is a proxy in this process that delays and paces every byte, or with `--netem` two network namespaces joined by
a pair of interfaces with tc netem (delay, rate, and 0.1 % loss), which needs root and a kernel that has it. Rows: results/calibrate.jsonl.
"""

import argparse
import heapq
import json
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rows
from processes import command, cutlayer, ended, free_port
from rich.console import Console

from cutlayer.recipes import load
from cutlayer.run import run_recipe

LINES = [  # scheme, Mbit/s up, down, ms each way
    ("vanilla", 20.0, 50.0, 5.0), ("vanilla", 50.0, 50.0, 30.0), ("vanilla", 5.0, 20.0, 1.0), ("dsl_seq", 5.0, 20.0, 10.0),
    ("dsl_seq", 10.0, 50.0, 40.0),
]  # fmt: skip
FIELDS = {
    "data": "digits", "model": "resnet8", "num_train": 512, "num_test": 32, "rounds": 4, "warmup_rounds": 0, "batch_size": 64,
    "num_threads": 1, "num_clients": 1, "diagnose_every": 0, "evaluate_every": 1,
}  # fmt: skip


class Line:
    """A proxy: every byte leaves at the pace of its direction's rate, and arrives so many seconds later."""

    def __init__(self, port: int, up: float, down: float, latency: float) -> None:
        self.there, self.rates, self.latency = port, {"up": up, "down": down}, latency / 1000
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self.listener.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", self.there))
                except OSError:  # the server is not there yet
                    here.close()
                    continue
                for a, b, way in ((here, there, "up"), (there, here, "down")):
                    a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    waiting: list[tuple[float, int, bytes]] = []
                    arrived = threading.Condition()
                    threading.Thread(target=self._read, args=(a, way, waiting, arrived), daemon=True).start()
                    threading.Thread(target=self._write, args=(b, waiting, arrived), daemon=True).start()

    def _read(self, a: socket.socket, way: str, waiting: list[tuple[float, int, bytes]], arrived: threading.Condition) -> None:
        free, count = 0.0, 0
        with suppress(OSError):
            while data := a.recv(1 << 14):
                free = max(free, time.perf_counter()) + 8e-6 * len(data) / self.rates[way]
                time.sleep(max(0.0, free - time.perf_counter()))
                count += 1
                with arrived:
                    heapq.heappush(waiting, (free + self.latency, count, data))
                    arrived.notify()

    def _write(self, b: socket.socket, waiting: list[tuple[float, int, bytes]], arrived: threading.Condition) -> None:
        with suppress(OSError):
            while True:
                with arrived:
                    arrived.wait_for(lambda: waiting)
                    due, _, data = heapq.heappop(waiting)
                time.sleep(max(0.0, due - time.perf_counter()))
                b.sendall(data)


def ip(*words: str) -> None:
    """Run ip or tc, and say what it said if it failed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def namespaces(up: float, down: float, latency: float, loss: float = 0.1) -> Iterator[tuple[list[str], list[str], str]]:
    """Yield what a server's and a client's command begin with in two joined namespaces, and the server's address.

    Raises OSError where this is not permitted or the kernel has no netem.
    """
    names = [f"cutlayer-{os.getpid()}-{side}" for side in ("s", "c")]
    try:
        for name in names:
            ip("ip", "netns", "add", name)
        ip("ip", "link", "add", "cl0", "netns", names[0], "type", "veth", "peer", "name", "cl1", "netns", names[1])
        for name, device, address, rate in ((names[0], "cl0", "10.77.0.1/24", down), (names[1], "cl1", "10.77.0.2/24", up)):
            inside = ["ip", "netns", "exec", name]
            ip("ip", "-n", name, "addr", "add", address, "dev", device)
            ip("ip", "-n", name, "link", "set", device, "up")
            ip("ip", "-n", name, "link", "set", "lo", "up")
            shape = ["delay", f"{latency}ms", "rate", f"{rate}mbit", "loss", f"{loss}%"]
            ip(*inside, "tc", "qdisc", "add", "dev", device, "root", "netem", *shape)
        yield ["ip", "netns", "exec", names[0]], ["ip", "netns", "exec", names[1]], "10.77.0.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def measured(scheme: str, line: Callable[[int], Any] | None, netem: tuple[float, float, float] | None = None) -> dict[str, Any]:
    """Run a recipe over gRPC and return its summary and records."""
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in {**FIELDS, "scheme": scheme}.items()]
    with tempfile.TemporaryDirectory() as folder:
        ended(cutlayer("certs", "demo", f"{folder}/certs"))
        keys = {
            who: [f"--ca={folder}/certs/ca.pem", f"--cert={folder}/certs/{who}.pem", f"--key={folder}/certs/{who}.key"]
            for who in ("server", "client0")
        }
        port = free_port()
        with namespaces(*netem) if netem else _here() as (at_server, at_client, host):
            serve = cutlayer("serve", "demo", *flags, f"--listen={host}:{port}", *keys["server"], f"--out={folder}/server")
            where = [f"--server={host}:{line(port).port if line else port}", "--as=client0"]
            join = cutlayer("join", "demo", *flags, *where, *keys["client0"], f"--out={folder}/c")
            ended([*at_server, *serve], [*at_client, *join])
        records = [json.loads(row) for row in Path(folder, "server", "records.jsonl").read_text().splitlines()]
        return {"records": records, **json.loads(Path(folder, "server", "summary.json").read_text())}


@contextmanager
def _here() -> Iterator[tuple[list[str], list[str], str]]:
    yield [], [], "127.0.0.1"


def speeds(scheme: str) -> tuple[float, float]:
    """Return multiply-adds per second of client and server, from a run on the bare line."""
    found = measured(scheme, None)
    recipe = load("demo", **FIELDS, scheme=scheme, speeds=(1.0,), server_speed=1.0)
    work = run_recipe(recipe).summary["simulated"]["seconds"]  # at one multiply-add a second, on lines that cost nothing
    spent = found["seconds"]
    client = spent["client_forward"] + spent["client_backward"]
    server = spent["server_forward"] + spent["server_backward"]
    macs = found["macs_per_sample"]
    share = {"client": sum(n for part, n in macs.items() if part != "top"), "server": macs["top"]}
    total = sum(share.values())
    return work * share["client"] / total / client, work * share["server"] / total / server


def seconds(records: list[dict[str, Any]], what: str = "seconds_total") -> float:
    """Return the seconds from the end of the first round to that of the last."""
    return float(records[-1][what] - records[0][what])


def predicted(scheme: str, up: float, down: float, latency: float, client: float, server: float) -> float:
    """Return those seconds as the virtual clock has them."""
    clock = {"uplink": up, "downlink": down, "latency": latency, "speeds": (client,), "server_speed": server}
    return seconds(run_recipe(load("demo", **FIELDS, scheme=scheme, **clock)).records, "simulated_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--netem", action="store_true", help="network namespaces with tc netem instead of a proxy")
    parser.add_argument("--tiny", action="store_true", help="one line, and no rows")
    args = parser.parse_args()
    console, errors, known = Console(), [], dict[str, tuple[float, float]]()
    for scheme, up, down, latency in LINES[:1] if args.tiny else LINES:
        known[scheme] = known.get(scheme) or speeds(scheme)
        foreseen = predicted(scheme, up, down, latency, *known[scheme])
        if args.netem:
            found = measured(scheme, None, (up, down, latency))
        else:
            found = measured(scheme, lambda port, at=(up, down, latency): Line(port, *at))  # type: ignore[misc]
        took = seconds(found["records"])
        errors.append(abs(foreseen - took) / took)
        line = f"{scheme}, {up:g}/{down:g} Mbit/s, {latency:g} ms"
        console.print(f"{line}: predicted {foreseen:.2f} s, measured {took:.2f} s, error {100 * errors[-1]:.1f} %")
        if not args.tiny:
            row = {"scheme": scheme, "line": [up, down, latency], "netem": args.netem, "predicted": foreseen, "measured": took}
            rows.write("calibrate", row)
    console.print(f"median error {100 * statistics.median(errors):.1f} %")


if __name__ == "__main__":
    command(main)
