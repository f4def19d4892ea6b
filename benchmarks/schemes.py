"""Every scheme side by side: accuracy and bytes on 10,000 images of CIFAR-10 between five clients, IID and Dirichlet(0.5).

ResNet-20, shallow cut, 12 rounds of the strong schedule, full test set, bfloat16. Simulated seconds are those of links of 20
Mbit/s up, 50 down and 30 ms each way, clients of 10 and a server of 100 billion multiply-adds a second. Every run is resumable and
its row is written when it is finished: results/schemes.jsonl.
"""

import argparse
from pathlib import Path
from typing import Any

import rows
from rich.console import Console

from cutlayer.compare import compare
from cutlayer.recipes import load
from cutlayer.recipes.recipe import options_for, with_scheme
from cutlayer.recipes.schemes import BASELINES, SCHEMES
from cutlayer.report import write

HEAD = {"auxiliary": "block", "reconstruction": "conv1x1", "aux_weight": 0.5, "reconstruction_weight": 5.0}
CLOCK = {"uplink": 20.0, "downlink": 50.0, "latency": 30.0, "speeds": (1e10,), "server_speed": 1e11}
OWN: dict[
    str, dict[str, Any]
] = {  # an alignment on the paper's memory would take hours here, and zeroth order diverges at lr 0.1
    "fsl_sage": {"align_rounds": 4, "align_epochs": 10, "memory_size": 256, "align_batch": 256},
    "hosl": {"lr": 1e-3},
    "heron_sfl": {"lr": 1e-3},
}
TINY = {
    "data": "digits", "num_train": 320, "num_test": 64, "rounds": 2, "warmup_rounds": 0, "lr_schedule": "constant", "batch_size": 16,
    "model": "resnet8",
}  # fmt: skip
FEW = ("splitfed_v2", "fedavg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/schemes"))
    parser.add_argument("--schemes", default=",".join([s for s in SCHEMES if s not in BASELINES] + list(BASELINES)))
    parser.add_argument("--partitions", default="iid,dirichlet")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--data-dir")
    parser.add_argument("--tiny", action="store_true", help="seconds, on digits and for few schemes, to see that it works")
    args = parser.parse_args()
    console, finished = Console(), []
    cells = [
        (int(s), p, name) for s in args.seeds.split(",") for p in args.partitions.split(",") for name in args.schemes.split(",")
    ]
    for seed, partition, name in cells:
        if args.tiny and name not in FEW:
            continue
        fields: dict[str, Any] = {"num_clients": 5, "partition": partition, "alpha": 0.5, **SCHEMES[name].fields, "seed": seed}
        own = options_for(with_scheme(fields))
        fields |= {k: v for k, v in HEAD.items() if k in own} | OWN.get(name, {}) | CLOCK
        recipe = load("small-cifar10", **fields, scheme=name, data_dir=args.data_dir, **(TINY if args.tiny else {}))
        done, complete = compare(
            [recipe], args.out, max_minutes=args.max_minutes, failed=lambda r, e: console.print(f"failed: {e}")
        )
        for run in done:
            finished.append(run._replace(label=f"{name}, {partition}"))
            s = run.summary
            console.print(
                f"seed {seed} {partition} {name}: last five {100 * s['accuracy_last5']:.2f} %, {s['seconds_total']:.0f} s"
            )
            if not args.tiny and not rows.written("schemes", digest=s["digest"]):
                rows.write(
                    "schemes", {"scheme": name, "partition": partition, "curve": [r.get("accuracy") for r in run.records], **s}
                )
        if not complete and args.max_minutes is not None:
            break
    if finished:
        console.print(f"report: {write(finished, args.out / 'report.html', 'Every scheme side by side')}")


if __name__ == "__main__":
    main()
