"""What a transport leaves of its medium: activations of 64 KB, 1 MB and 8 MB one way, against the bare medium, in one run.

MPI against mpi4py's Send and Recv of a buffer, gRPC against a grpcio stream of bytes in chunks of 1 MB, both with the same mutual TLS.
Messages follow each other as a decoupled client sends them; the receiver has the tensor when the clock stops. The added latency of a
small message is half a round trip of 64 bytes minus the bare one's. Medians of `--repeats` interleaved passes: results/throughput.jsonl.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import rows
import torch
from processes import command, ended, mpiexec, positive, starting
from rich.console import Console

from cutlayer.errors import unknown
from cutlayer.transports.session import CHUNK_BYTES
from cutlayer.wire import Message, Packed, loads, pack

SIZES = {"64 KB": 1 << 16, "1 MB": 1 << 20, "8 MB": 1 << 23}
TOTAL = {"64 KB": 1 << 26, "1 MB": 1 << 28, "8 MB": 1 << 29}
ROUND_TRIPS = 300


def activations(nbytes: int) -> Packed:
    """Return a packed message of so many bytes of activations."""
    return pack(Message("smashed", {"smashed": torch.randn(nbytes // 4)}, client=0, reply="none"), {})


def mpi(repeats: int, shrink: int) -> None:
    """Measure on two ranks; rank 0 prints a table as JSON."""
    import json

    from cutlayer.transports.mpi import World

    world = World()
    comm, byte = world.comm, world.mpi.BYTE
    torch.set_num_threads(1)

    def bare(nbytes: int, count: int, new: bool = False) -> None:
        buffer = torch.empty(nbytes, dtype=torch.uint8).numpy()
        for _ in range(count):
            if world.rank:
                comm.Send([buffer, byte], dest=0)
            else:
                comm.Recv([torch.empty(nbytes, dtype=torch.uint8).numpy() if new else buffer, byte], source=1)

    def ours(nbytes: int, count: int) -> None:
        packed = activations(nbytes)
        for _ in range(count):
            if world.rank:
                world.wait(lambda: world.unsent() < 8 << 20)
                world.frame(0, packed, 0)
            else:
                world.wait(world.poll)
        world.wait(lambda: not world.unsent())

    def bare_trip(_: int, count: int) -> None:
        buffer = bytearray(64)
        for _ in range(count):
            for sender in (0, 1):
                if world.rank == sender:
                    comm.Send([buffer, byte], dest=1 - sender)
                else:
                    comm.Recv([buffer, byte], source=sender)

    def our_trip(_: int, count: int) -> None:
        packed = activations(64)
        for _ in range(count):
            for sender in (0, 1):
                if world.rank == sender:
                    world.frame(1 - sender, packed, 0)
                else:
                    world.wait(world.poll)

    def timed(what: Callable[[int, int], None], nbytes: int, count: int) -> float:
        comm.Barrier()
        begin = time.perf_counter()
        what(nbytes, count)
        comm.Barrier()
        return time.perf_counter() - begin

    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for name, nbytes in SIZES.items():
            count = max(2, TOTAL[name] // nbytes // shrink)
            row = found.setdefault(name, {"bare": [], "bare_new": [], "ours": []})
            for which, what in (("bare", bare), ("bare_new", partial(bare, new=True)), ("ours", ours)):
                row[which].append(count * nbytes / timed(what, nbytes, count) / 1e9)
        row = found.setdefault("latency", {"bare": [], "ours": []})
        for which, what in (("bare", bare_trip), ("ours", our_trip)):
            row[which].append(1e6 * timed(what, 64, ROUND_TRIPS // shrink + 1) / (ROUND_TRIPS // shrink + 1) / 2)
    if world.rank == 0:
        print("TABLE " + json.dumps(found))


def grpc_table(repeats: int, shrink: int) -> dict[str, dict[str, list[float]]]:
    """Measure in two processes: this one sends, a child receives."""
    import json

    from cutlayer.certs import Authority

    with tempfile.TemporaryDirectory() as folder, starting() as start:
        authority = Authority(Path(folder))
        for name in ("server", "client0"):
            authority.issue(name)
        receiver = start([sys.executable, __file__, "--receive", folder], stderr=None)
        assert receiver.stdout is not None
        ports = json.loads(receiver.stdout.readline())
        return _send(Path(folder), ports, repeats, shrink)


def _tls(folder: Path, name: str) -> Any:
    from cutlayer.transports.grpc_common import Tls

    return Tls(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")


def _send(folder: Path, ports: dict[str, int], repeats: int, shrink: int) -> dict[str, dict[str, list[float]]]:
    from cutlayer.transports.grpc_client import NetworkLine
    from cutlayer.transports.grpc_common import METHOD, SERVER_NAME, grpc

    torch.set_num_threads(1)
    ca, cert, key = _tls(folder, "client0").read()
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    channel = grpc.secure_channel(f"127.0.0.1:{ports['bare']}", grpc.ssl_channel_credentials(ca, key, cert), options)
    stub = channel.stream_stream(METHOD)
    line = NetworkLine(f"127.0.0.1:{ports['ours']}", "client0", {}, tls=_tls(folder, "client0"))
    line.connect()

    def bare(nbytes: int, count: int) -> None:
        whole = os.urandom(nbytes)

        def chunks() -> Iterator[bytes]:
            for _ in range(count):
                for first in range(0, nbytes, CHUNK_BYTES):
                    yield whole[first : first + CHUNK_BYTES]

        list(stub(chunks()))  # the receiver ends the stream when it has everything

    def ours(nbytes: int, count: int) -> None:
        packed = activations(nbytes)
        for _ in range(count):
            line.send(packed, 0)
        assert line.session.settled(60)

    def bare_trip(_: int, count: int) -> None:
        turn = threading.Semaphore(1)

        def pings() -> Iterator[bytes]:
            for _ in range(count):
                turn.acquire()
                yield b"ping" * 16

        for _ in stub(pings()):
            turn.release()

    def our_trip(_: int, count: int) -> None:
        packed = activations(64)
        for _ in range(count):
            line.send(packed, 1)
            line.receive()

    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(repeats):
        for name, nbytes in SIZES.items():
            count = max(2, TOTAL[name] // nbytes // shrink)
            row = found.setdefault(name, {"bare": [], "ours": []})
            for which, what in (("bare", bare), ("ours", ours)):
                begin = time.perf_counter()
                what(nbytes, count)
                row[which].append(count * nbytes / (time.perf_counter() - begin) / 1e9)
        row = found.setdefault("latency", {"bare": [], "ours": []})
        for which, what in (("bare", bare_trip), ("ours", our_trip)):
            begin, trips = time.perf_counter(), ROUND_TRIPS // shrink + 1
            what(64, trips)
            row[which].append(1e6 * (time.perf_counter() - begin) / trips / 2)
    line.close()
    return found


def receive(folder: Path) -> None:
    """Be the receiver of both streams."""
    import json
    from concurrent.futures import ThreadPoolExecutor

    from cutlayer.transports.grpc_common import METHOD, grpc
    from cutlayer.transports.grpc_server import Gate

    torch.set_num_threads(1)
    ca, cert, key = _tls(folder, "server").read()

    def converse(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for record in requests:
            if len(record) == 64:
                yield record

    server = grpc.server(ThreadPoolExecutor(4))
    handler = grpc.stream_stream_rpc_method_handler(converse)
    service, method = METHOD[1:].split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)], ca, True))
    server.start()
    gate = Gate("127.0.0.1:0", ["client0"], lambda name, hello: None, tls=_tls(folder, "server"))
    print(json.dumps({"bare": port, "ours": gate.port}), flush=True)
    answer = activations(64)
    while True:
        event = gate.events.get()
        if event.received is not None and event.received.frame is not None:
            loads(event.received.frame, checked=False)
            event.session.take(event.received)
            if event.received.label:
                gate.post(0, answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--transports", default="mpi,grpc")
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it works; no rows")
    parser.add_argument("--ranks", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--receive", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    positive(args, "repeats")
    repeats, shrink = (1, 16) if args.tiny else (args.repeats, 1)
    if args.receive:
        receive(args.receive)
    if args.ranks:
        mpi(repeats, shrink)
        return
    import json

    transports = args.transports.split(",")
    for transport in transports:
        if transport not in ("mpi", "grpc"):
            raise unknown("transport", transport, ("mpi", "grpc"))
    for transport in transports:
        if transport == "mpi":
            words = [*mpiexec(2), sys.executable, __file__, "--ranks"]
            words += ["--tiny"] if args.tiny else ["--repeats", str(repeats)]
            said = ended(words)
            table = json.loads(next(line for line in said.splitlines() if line.startswith("TABLE ")).removeprefix("TABLE "))
        else:
            table = grpc_table(repeats, shrink)
        for name, both in table.items():
            bare, ours = (statistics.median(both[which]) for which in ("bare", "ours"))
            unit = "us one way" if name == "latency" else "GB/s"
            share = statistics.median(o / b for o, b in zip(both["ours"], both["bare"], strict=True))
            row = {"transport": transport, "what": name, "unit": unit, "bare": bare, "ours": ours, "ratio": share}
            if "bare_new" in both:
                row["ratio_new"] = statistics.median(o / b for o, b in zip(both["ours"], both["bare_new"], strict=True))
            Console().print(f"{transport} {name}: bare {bare:.3g}, cutlayer {ours:.3g} {unit}, ratio {share:.2f}")
            if not args.tiny:
                rows.write("throughput", row)


if __name__ == "__main__":
    command(main)
