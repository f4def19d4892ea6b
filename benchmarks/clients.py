"""What more clients cost: seconds a round and the server's memory with 1, 2, 5, 10 and 20 clients, in one process and under MPI.

ResNet-20, shallow cut, 256 images of CIFAR-10 for each client, batches of 32, 3 rounds, 32 test images; vanilla, U-shaped, SplitFed V1, V2
(one batch after the other, and those of all clients as one) and V3. Every process has one thread, and under MPI all ranks share this
machine's cores. Seconds are the median of the second and third round, and the accuracies of both transports have to be the same:
results/clients.jsonl.
"""

import argparse
import json
import re
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import rows
from processes import command, cutlayer, ended, mpiexec
from rich.console import Console

SCHEMES = {name: ["--scheme", name] for name in ("vanilla", "u_shaped", "splitfed_v1", "splitfed_v2", "splitfed_v3")}
SCHEMES["splitfed_v2, concatenated"] = ["--scheme", "splitfed_v2", "--server-order", "concatenated"]
EACH = 256  # images of a client
SIZE = "--num-test 32 --rounds 3 --warmup-rounds 0 --batch-size 32 --evaluate-every 1".split()
TINY = "--data digits --num-train 64 --num-test 32 --rounds 3 --warmup-rounds 0 --model resnet8".split()


def measure(transport: str, n: int, words: list[str], folder: Path) -> dict[str, Any]:
    """Run a recipe with n clients and return its seconds a round, the peak of the server's memory in bytes, and its accuracy."""
    run = cutlayer("run", *words, "--num-clients", str(n), "--out", str(folder))
    if transport == "mpi":
        run = [*mpiexec(1 + n), *run, "--transport", "mpi"]
    ended(run)
    summary = json.loads((folder / "summary.json").read_text())
    ends = [json.loads(line)["seconds_total"] for line in (folder / "records.jsonl").read_text().splitlines()]
    seconds = [later - sooner for sooner, later in pairwise(ends)]
    return {
        "seconds": statistics.median(seconds), "server_bytes": summary["peak_memory_bytes"]["server"],
        "memory_figure": summary["memory_figure"],
        "accuracy": summary["accuracy_final"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="1,2,5,10,20")
    parser.add_argument("--transports", default="inprocess,mpi")
    parser.add_argument("--data-dir")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help="told in every row")
    parser.add_argument("--tiny", action="store_true", help="two clients on digits, in one process, without rows")
    args = parser.parse_args()
    for transport in args.transports.split(","):
        if transport not in ("inprocess", "mpi"):
            parser.error(f"--transports {transport}: take inprocess, mpi or both")
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", args.clients):
        parser.error(f"--clients {args.clients}: take numbers like 1,2,5")
    precision = "float32" if args.tiny else args.precision
    data = ["--data-dir", args.data_dir] if args.data_dir else []
    for transport in ["inprocess"] if args.tiny else args.transports.split(","):
        for n in [2] if args.tiny else [int(n) for n in args.clients.split(",")]:
            for scheme, own in list(SCHEMES.items())[: 1 if args.tiny else None]:
                cell = {"transport": transport, "clients": n, "scheme": scheme, "precision": precision}
                if not args.tiny and rows.written("clients", **cell):
                    continue
                size = TINY if args.tiny else [*SIZE, "--num-train", str(n * EACH), *data]
                words = ["small-cifar10", *own, "--num-threads", "1", "--precision", precision, *size]
                with tempfile.TemporaryDirectory() as folder:
                    found = measure(transport, n, words, Path(folder))
                Console().print(
                    f"{transport}, {n} clients, {scheme}: {found['seconds']:.2f} s, {found['server_bytes'] / 1e6:.1f} MB"
                )
                if not args.tiny:
                    rows.write("clients", {**cell, **found, "num_threads": 1})


if __name__ == "__main__":
    command(main)
