"""Loss-based asynchronous training with 8-bit floats (arXiv 2107.09786): what a threshold saves, and what it costs.

VGG11, one client, 10,000 images of CIFAR-10, 60 epochs, bfloat16 arithmetic: conventional split learning with the floats it computes
in, and with 8-bit ones; three thresholds, three seeds. The reduction is that of what crosses in training against the conventional
run with its activations and gradients as float32 (the paper: 1.64 to 106.7 times); accuracies are paired by seed, and a difference
whose 95 % interval contains -0.5 points is "not separated". Every run is resumable; rows are written as they finish:
results/loss_threshold.jsonl. `--rounds 20 --seeds 0` is a first look, and is told apart in the rows.
"""

import argparse
from pathlib import Path
from typing import Any

import rows
from rich.console import Console

from cutlayer.compare import compare
from cutlayer.recipes import load

FLOAT8 = {"smashed": "float8", "cut_grad": "float8"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "conventional": {"scheme": "vanilla", "method": "backprop"},
    "conventional, float8": {"scheme": "vanilla", "method": "backprop", "codec": FLOAT8},
    **{
        f"threshold {threshold}": {"scheme": "async_loss", "threshold": threshold, "codec": FLOAT8}
        for threshold in (0.05, 0.2, 0.5)
    },
}
BASE: dict[str, Any] = {
    "data": "cifar10", "model": "vgg11", "cut": "shallow", "num_clients": 1, "lr": 0.05, "lr_schedule": "cosine",
    "evaluate_every": 10, "precision": "bfloat16", "memory_format": "contiguous",  # channels_last takes VGG11 twice as long here
}  # fmt: skip
FEW = ("conventional", "threshold 0.2")
TINY = {
    "data": "digits",
    "num_train": 64,
    "num_test": 32,
    "rounds": 3,
    "warmup_rounds": 0,
    "model": "resnet8",
    "batch_size": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/loss_threshold"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--num-train", type=int, default=10_000, help="training images, told in every row")
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--data-dir")
    parser.add_argument("--tiny", action="store_true", help="seconds, on digits, to see that it works")
    args = parser.parse_args()
    console = Console()
    chosen = [(name, fields) for name, fields in CONFIGURATIONS.items() if not args.tiny or name in FEW]
    for seed in "0" if args.tiny else args.seeds.split(","):
        for name, fields in chosen:
            changes = {
                **BASE, "rounds": args.rounds, "num_train": args.num_train, "seed": int(seed), **fields, **(TINY if args.tiny else {}),
            }  # fmt: skip
            recipe = load("small-cifar10", data_dir=args.data_dir, **changes)
            done, complete = compare(
                [recipe], args.out, max_minutes=args.max_minutes, failed=lambda r, e: console.print(f"failed: {e}")
            )
            for run in done:
                s = run.summary
                states = "".join("ABC"[int(r["state"])] for r in run.records if "state" in r)
                console.print(f"seed {seed} {name}: last five {100 * s['accuracy_last5']:.2f} %, {states}")
                if not args.tiny and not rows.written("loss_threshold", digest=s["digest"]):
                    rows.write("loss_threshold", {"configuration": name, "states": states, **s})
            if not complete and args.max_minutes is not None:
                return


if __name__ == "__main__":
    main()
