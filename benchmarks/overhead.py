"""What the package costs over the same training in raw PyTorch: both in one process, turn by turn, on the same tensors.

ResNet-20 on random images of CIFAR-10's shape, cut after its second block, bfloat16 and channels_last. The two
alternate every 10 batches, who begins changes every time, and the meter is on. At the end both must hold the same weights.
"""

import argparse
import copy
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "examples")]
import rows
from plain_split import Conventional, Decoupled
from processes import command, positive

import cutlayer as cl
from cutlayer.client import Batches
from cutlayer.fit import fitted
from cutlayer.parties import build
from cutlayer.program import program
from cutlayer.recipes.recipe import make
from cutlayer.streams import stream
from cutlayer.task import Batch, Task
from cutlayer.transports import inprocess


def two_threads_run_at_once() -> float:
    """Return how much longer two busy threads take than one; about 1 where they run at once, 2 where they do not."""
    torch.set_num_threads(1)

    def busy() -> None:
        a = torch.rand(700, 700)
        for _ in range(60):
            a = (a @ a).clamp(-1, 1)

    def took(n: int) -> float:
        threads = [threading.Thread(target=busy) for _ in range(n)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    busy()
    return statistics.median(took(2) / took(1) for _ in range(5))


def compare(method: str, pairs: int, per_turn: int, batch_size: int, precision: str, num_threads: int) -> dict[str, object]:
    """Return the paired seconds of package and twin, after showing that they hold the same weights."""
    fields = {"method": method, "precision": precision, "memory_format": "channels_last", "lr": 0.05, "batch_size": batch_size}
    recipe = make(
        {**fields, "num_threads": num_threads, "rounds": 1, **({"auxiliary": "block"} if method == "auxiliary_loss" else {})}
    )
    torch.manual_seed(0)
    model = cl.models.resnet20(10)
    parts = cl.cut(model, "shallow")
    draw = stream(0, "bench")
    n = pairs * per_turn * batch_size
    x = torch.randn(min(n, 2000), 3, 32, 32, generator=draw)
    source = cl.data.Tensors(x, torch.randint(0, 10, (len(x),), generator=draw), 10)
    task = fitted(Task(), recipe, parts, source)
    parties = build(recipe, parts, cl.partition.contiguous(source, num_clients=1), source, task, lambda: None)
    client, server = parties.clients[0], parties.server
    how = {"lr": 0.05, "momentum": 0.9}
    twins = [copy.deepcopy(client.modules[name]) for name in client.modules]
    twin = (Conventional if method == "backprop" else Decoupled)(twins[0], copy.deepcopy(server.top), *twins[1:], **how)
    seconds: dict[str, list[float]] = {"package": [], "twin": []}

    def alternate(round: int, first: int) -> Iterator[Batch]:
        for pair in range(-1, pairs):  # the first pair warms up
            chunk = []
            for _ in range(per_turn):
                batch = source.batch(torch.randint(0, len(x), (batch_size,), generator=draw), None)
                chunk.append(batch._replace(x=batch.x.contiguous(memory_format=torch.channels_last)))
            took = {}
            for who in ("package", "twin") if pair % 2 else ("twin", "package"):
                begin = time.perf_counter()
                if who == "package":
                    yield from chunk
                else:
                    for b in chunk:
                        twin.step(b.x, b.y, torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"))
                took[who] = time.perf_counter() - begin
            if pair >= 0:
                for who, value in took.items():
                    seconds[who].append(value)

    torch.set_num_threads(num_threads)
    many = (pairs + 1) * per_turn
    inprocess.run({0: program(client, parties.methods[0], Batches(alternate, many, many))}, server, parties.ends, parties.meter)
    for mine, theirs in ((client.modules["bottom"], twin.bottom), (server.top, twin.top)):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), f"{method}: {name} differs from the twin's"
    ratios = torch.tensor([a / b for a, b in zip(seconds["package"], seconds["twin"], strict=True)])
    draws = torch.randint(0, len(ratios), (10_000, len(ratios)), generator=stream(0, "bootstrap"))
    medians = ratios[draws].median(1).values
    low, high = torch.quantile(medians, torch.tensor([0.025, 0.975])).tolist()
    return {
        "method": method, "pairs": pairs, "batches_per_turn": per_turn, "batch_size": batch_size, "num_threads": num_threads,
        "median_ratio": float(ratios.median()), "interval_95": [low, high], "weights_equal": True,
        "ms_per_step": {who: 1000 * statistics.median(values) / per_turn for who, values in seconds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a few small batches, to see that it works")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    positive(args, "threads")
    at_once = two_threads_run_at_once()
    print(f"two busy threads take {at_once:.2f} times as long as one")
    if at_once > 1.5 and not args.tiny:
        sys.exit("two busy threads do not run at once here, so nothing timed now would mean anything; try again later")
    for method in ("backprop", "auxiliary_loss"):
        row = compare(method, *((2, 2, 8, "float32") if args.tiny else (40, 10, 128, "bfloat16")), args.threads)
        print(
            f"{method}: {row['median_ratio']:.3f} of the twin's time, 95 % interval {row['interval_95']}, {row['ms_per_step']} ms a step"
        )
        if not args.tiny:
            rows.write("overhead", {**row, "two_threads": at_once})


if __name__ == "__main__":
    command(main)
