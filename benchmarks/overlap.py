"""What a decoupled client saves when the server works at the same time, against conventional split learning that does not idle either.

ResNet-20, batches of 128 random images, bfloat16 and channels_last. Every party has one core and one thread: the clients share
the first core, the server has the second; beside it stands conventional split learning in one thread of control with both cores. The
conventional ones: serial; four micro-batches of 32 in flight (the server steps for each); two and five clients whose turns fill the
server's gaps, each with its own copy of the top (SplitFed V1). Messages may take `latency` ms each way; decoupled clients wait for none.
All variants of a cut are timed one after the other, five times over, and the median is kept, in ms for each batch of 128. `bound` is the
best that overlap can do for the decoupled client with that head: max(client, server) / (client + server), from its own serial phases.
"""

import argparse
import os
import queue
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent)]
import rows
from processes import command

import cutlayer as cl
from cutlayer.client import Batches, Client
from cutlayer.fit import fitted
from cutlayer.methods import METHODS, Entry
from cutlayer.methods.backprop import Backprop
from cutlayer.parties import Parties, build
from cutlayer.recipes.recipe import make
from cutlayer.streams import stream
from cutlayer.task import Batch, Task
from cutlayer.transports.link import Link
from cutlayer.wire import Collect

CUTS = {"block2": "stage1.block2", "block3": "stage1.block3", "block5": "stage2.block2"}
HEADS = {"mlp": {"auxiliary": "mlp"}, "block": {"auxiliary": "block"}}
HEADS["block+reconstruction"] = {"auxiliary": "block", "reconstruction": "conv1x1"}
MICRO = 4


class MicroBatches(Backprop):
    """Conventional split learning with a batch in four parts, of which the server has one while the client computes another."""

    def step(self, client: Client, batch: Batch) -> Any:
        parts = [Batch(x, y) for x, y in zip(batch.x.chunk(MICRO), batch.y.chunk(MICRO), strict=True)]
        sent = []
        for part in parts:
            z = client.forward(part)
            yield from client.uplink(z, part, later=True)
            sent.append(z)
        for z in sent:
            reply = yield from client.collect(client.step)
            with client.meter.phase("client_backward", client.id):
                z.main.backward(reply.tensors["cut_grad"] / MICRO)
        client.training.step(client.optimizer)
        return {}


METHODS["micro_batches"] = Entry(MicroBatches, "")


def parties_of(cut: str, images: int, **fields: Any) -> tuple[Parties, Any]:
    """Return parties of a recipe and their source."""
    how = {"memory_format": "channels_last", "batch_size": images, "num_threads": 1, "lr": 0.01, "rounds": 1}
    recipe = make({**how, **fields})
    torch.manual_seed(0)
    parts = cl.cut(cl.models.resnet20(10), CUTS[cut])
    draw = stream(0, "bench")
    n = max(images, 64) * recipe.num_clients
    source = cl.data.Tensors(torch.randn(n, 3, 32, 32, generator=draw), torch.randint(0, 10, (n,), generator=draw), 10)
    clients = cl.partition.contiguous(source, num_clients=recipe.num_clients)
    return build(recipe, parts, clients, source, fitted(Task(), recipe, parts, source), lambda: None), source


def batch_of(source: Any, images: int) -> Batch:
    batch: Batch = source.batch(torch.arange(images), None)
    return batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last))


def on_threads(parties: Parties, batch: Batch, batches: int, latency: float, cores: list[int]) -> float:
    """Return the seconds of some batches in all: clients on the first core, taking turns when they wait, the server on the second."""
    link = Link(parties.ends, parties.meter)
    up: queue.Queue[Any] = queue.Queue(8 * len(parties.clients))
    down: queue.Queue[Any] = queue.Queue()

    def serve() -> None:
        os.sched_setaffinity(0, {cores[1]})
        torch.set_num_threads(1)
        while (item := up.get()) is not None:
            there, packed = item
            time.sleep(max(0.0, there - time.perf_counter()))
            for reply in parties.server.handle(link.arrive("up", packed)):
                down.put((time.perf_counter() + latency, link.send("down", reply)))

    def life(client: Client, method: Any, count: int) -> Iterator[Any]:
        for _ in range(count):
            yield from method.step(client, batch)
            client.step += 1

    thread = threading.Thread(target=serve, daemon=True)  # if this one fails, nobody sends it an end
    share = [batches // len(parties.clients)] * len(parties.clients)
    lives = {c.id: life(c, m, n) for c, m, n in zip(parties.clients, parties.methods, share, strict=True)}
    ready: deque[tuple[int, Any]] = deque((k, None) for k in lives)
    waits: dict[int, int] = {}
    inbox: dict[int, deque[Any]] = {k: deque() for k in lives}
    begin = time.perf_counter()
    thread.start()
    while ready or waits:
        while not ready or not down.empty():
            there, packed = down.get()
            time.sleep(max(0.0, there - time.perf_counter()))
            k = packed.message.client
            inbox[k].append(link.arrive("down", packed))
            if k in waits:
                del waits[k]
                ready.append((k, inbox[k].popleft()))
        k, reply = ready.popleft()
        try:
            sent = lives[k].send(reply)
        except StopIteration:
            continue
        if isinstance(sent, Collect):
            if inbox[k]:
                ready.append((k, inbox[k].popleft()))
            else:
                waits[k] = sent.step
            continue
        up.put((time.perf_counter() + latency, link.send("up", sent)))
        if sent.reply == "wait":
            waits[k] = sent.step
        else:
            ready.append((k, None))
    up.put(None)
    thread.join()
    return time.perf_counter() - begin


def both_cores(parties: Parties, batch: Batch, batches: int) -> float:
    """Return the seconds of conventional split learning that has both cores for whoever computes."""
    from cutlayer.program import program
    from cutlayer.transports import inprocess

    torch.set_num_threads(2)
    its = Batches(lambda round, first: iter([batch] * batches), batches, batches)
    begin = time.perf_counter()
    inprocess.run({0: program(parties.clients[0], parties.methods[0], its)}, parties.server, parties.ends, parties.meter)
    return time.perf_counter() - begin


def variants(latencies: list[float]) -> dict[str, tuple[dict[str, Any], float]]:
    """Return what is timed: by name the recipe's fields and the latency in seconds."""
    many = {"schedule": "parallel", "server_copies": True}
    found: dict[str, tuple[dict[str, Any], float]] = {}
    for ms in latencies:
        found[f"conventional, serial, {ms:g} ms"] = {}, ms / 1000
        found[f"conventional, 4 micro-batches, {ms:g} ms"] = {"method": "micro_batches"}, ms / 1000
        found[f"conventional, 2 clients, {ms:g} ms"] = {**many, "num_clients": 2}, ms / 1000
        found[f"conventional, 5 clients, {ms:g} ms"] = {**many, "num_clients": 5}, ms / 1000
    for name, head in HEADS.items():
        found[f"decoupled, {name}"] = {"method": "auxiliary_loss", **head}, max(latencies) / 1000
    return found


def time_cut(cut: str, images: int, batches: int, repeats: int, precision: str, latencies: list[float]) -> dict[str, Any]:
    """Return the medians of all variants of a cut, in ms for each batch, and the bounds of the decoupled ones."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    cores = cores * 2 if len(cores) < 2 else cores
    took: dict[str, list[float]] = {}
    bounds: dict[str, list[float]] = {}
    for repeat in range(-1, repeats):  # the first warms up
        for name, (fields, latency) in variants(latencies).items():
            parties, source = parties_of(cut, images, precision=precision, **fields)
            batch = batch_of(source, images)
            os.sched_setaffinity(0, {cores[0]})
            torch.set_num_threads(1)
            seconds = on_threads(parties, batch, batches, latency, cores)
            if repeat >= 0:
                took.setdefault(name, []).append(1000 * seconds / batches)
                if name.startswith("decoupled"):
                    s = parties.meter.seconds
                    client, server = s["client_forward"] + s["client_backward"], s["server_forward"] + s["server_backward"]
                    bounds.setdefault(name, []).append(max(client, server) / (client + server))
        os.sched_setaffinity(0, set(cores))
        parties, source = parties_of(cut, images, precision=precision)
        seconds = both_cores(parties, batch_of(source, images), batches)
        if repeat >= 0:
            took.setdefault("conventional, both cores", []).append(1000 * seconds / batches)
    ms = {name: round(statistics.median(values), 1) for name, values in took.items()}
    return {"ms_per_batch": ms, "bound": {name: round(statistics.median(values), 3) for name, values in bounds.items()}}


def ratios(ms: dict[str, float], latencies: list[float]) -> dict[str, dict[str, float]]:
    """Return, for each head and latency, its time over that of the fastest conventional one that has a core for each party."""
    best = {
        f"{at:g} ms": min(v for k, v in ms.items() if k.startswith("conv") and k.endswith(f" {at:g} ms")) for at in latencies
    }
    best["both cores"] = ms["conventional, both cores"]
    heads = {name: value for name, value in ms.items() if name.startswith("decoupled")}
    return {name: {at: round(value / other, 3) for at, other in best.items()} for name, value in heads.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few small batches, to see that it works")
    args = parser.parse_args()
    latencies = [0.0, 1.0] if args.tiny else [0.0, 10.0, 50.0]
    for cut in list(CUTS)[: 1 if args.tiny else 3]:
        found = time_cut(cut, *((8, 10, 1, "float32") if args.tiny else (128, 10, 5, "bfloat16")), latencies)
        row = {"cut": cut, "images": 8 if args.tiny else 128, **found, "ratio": ratios(found["ms_per_batch"], latencies)}
        for name, value in found["ms_per_batch"].items():
            print(f"{cut}: {name}: {value} ms")
        print(f"{cut}: of the best conventional: {row['ratio']}; bound {found['bound']}")
        if not args.tiny:
            rows.write("overlap", row)


if __name__ == "__main__":
    command(main)
