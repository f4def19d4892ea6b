"""Where the time of a batch goes (Figure 7 of arXiv 2601.19261): forward and backward of both sides of ResNet-110 at its three cuts.

Conventional and decoupled with the head of the paper's text, of the authors' code, and `block` with a 1x1 reconstruction; batches of 128
images of CIFAR-10, one client, one process, bfloat16. Milliseconds are those of the second of two rounds of ten batches; a repeat is all
of them in turn. Nothing else may run on the machine: results/latency.jsonl.
"""

import argparse
from typing import Any

import rows
from decoupled import CUTS
from heads import PLAIN, RECONSTRUCTED
from processes import command, positive
from rich.console import Console

from cutlayer.recipes import load
from cutlayer.run import run_recipe

METHODS: dict[str, dict[str, Any]] = {
    "conventional": {"scheme": "vanilla", "method": "backprop"},
    "decoupled, linear": {"auxiliary": "linear", **PLAIN},
    "decoupled, mlp": {"auxiliary": "mlp", **PLAIN},
    "decoupled, block + reconstruction": {"auxiliary": "block", **RECONSTRUCTED},
}
PHASES = ("client_forward", "client_backward", "server_forward", "server_backward", "codec")
BATCHES, BATCH = 10, 128
BASE = {"num_test": BATCH, "rounds": 2, "warmup_rounds": 0, "evaluate_every": 2, "precision": "bfloat16"}
TINY = {"data": "digits", "model": "resnet8", "precision": "float32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each in all; those that have rows are not run again")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--data-dir")
    parser.add_argument("--tiny", action="store_true", help="one batch of digits at the deep cut, without rows")
    args = parser.parse_args()
    positive(args, "repeats", "num_threads")
    batches = 1 if args.tiny else BATCHES
    for repeat in range(1 if args.tiny else args.repeats):
        for cut in CUTS[-1:] if args.tiny else CUTS:
            for what, own in METHODS.items():
                cell = {"cut": cut, "what": what, "repeat": repeat, "num_threads": args.num_threads}
                if not args.tiny and rows.written("latency", **cell):
                    continue
                size = {"num_train": batches * BATCH, "num_threads": args.num_threads, "data_dir": args.data_dir}
                recipe = load("dsl-cifar10", **{**BASE, **size, "cut": cut, **own, **(TINY if args.tiny else {})})
                first, second = (record["seconds"] for record in run_recipe(recipe).records)
                ms = {phase: 1000 * (second[phase] - first[phase]) / batches for phase in PHASES}
                Console().print(f"{cut}, {what}: {sum(ms.values()):.0f} ms a batch")
                if not args.tiny:
                    rows.write("latency", {**cell, "ms_per_batch": ms})


if __name__ == "__main__":
    command(main)
