"""What the auxiliary head decides: conventional against decoupled split learning on 10,000 images of CIFAR-10, 3 seeds.

ResNet-20, shallow cut, 12 rounds of the strong schedule, full test set, bfloat16; about an hour on 2 cores. Every run is resumable and
its row is written when it is finished: results/heads.jsonl.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import rows
from rich.console import Console

from cutlayer.compare import compare
from cutlayer.recipes import load
from cutlayer.report import write

RECONSTRUCTED = {"reconstruction": "conv1x1", "aux_weight": 0.5, "reconstruction_weight": 5.0}
PLAIN = {"reconstruction": "none", "aux_weight": 1.0}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "conventional": {"scheme": "vanilla", "hand_over": "shared"},
    "linear": {"auxiliary": "linear", **PLAIN},
    "mlp": {"auxiliary": "mlp", **PLAIN},
    "lite + reconstruction": {"auxiliary": "lite", **RECONSTRUCTED},
    "block": {"auxiliary": "block", **PLAIN},
    "block + reconstruction": {"auxiliary": "block", **RECONSTRUCTED},
    "block + reconstruction, float8": {"auxiliary": "block", **RECONSTRUCTED, "codec": {"smashed": "float8"}},
}
TINY = {
    "data": "digits",
    "num_train": 64,
    "num_test": 64,
    "rounds": 1,
    "warmup_rounds": 0,
    "lr_schedule": "constant",
    "batch_size": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--data-dir")
    parser.add_argument("--tiny", action="store_true", help="seconds, on digits, to see that it works")
    args = parser.parse_args()
    console, finished = Console(), []
    for seed in (int(s) for s in args.seeds.split(",")):
        for label, fields in CONFIGURATIONS.items():
            recipe = load("small-cifar10", **fields, seed=seed, data_dir=args.data_dir, **(TINY if args.tiny else {}))
            begin = time.perf_counter()
            failures: list[str] = []
            done, _ = compare(
                [recipe], args.out, max_minutes=args.max_minutes, failed=lambda r, e, failures=failures: failures.append(str(e))
            )
            if failures and not args.tiny:
                rows.write("heads", {"configuration": label, "seed": seed, "failed": failures[0], "recipe": recipe.flat()})
            for run in done:
                finished.append(run._replace(label=label))
                s = run.summary
                console.print(
                    f"seed {seed} {label}: last five {100 * s['accuracy_last5']:.2f} % in {time.perf_counter() - begin:.0f} s"
                )
                if not args.tiny and not rows.written("heads", configuration=label, seed=seed):
                    rows.write("heads", {"configuration": label, "curve": [r.get("accuracy") for r in run.records], **s})
            for failure in failures:
                console.print(f"seed {seed} {label}: {failure}")
    console.print(f"report: {write(finished, args.out / 'report.html', 'What the auxiliary head decides')}")


if __name__ == "__main__":
    main()
