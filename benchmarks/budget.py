"""Bytes until an accuracy (FSL-SAGE's comparison, arXiv 2505.23182): methods that send little, beside FedAvg and SplitFed.

ResNet-18 at a quarter of its width cut after its second stage, three clients, the first 10,000 images of CIFAR-10, 20 rounds, full test
set every round, bfloat16. Bytes of everything that crosses in training, until the mean of three rounds reaches 55, 60 and 65 %:
results/budget.jsonl. Their figure is of the whole ResNet-18 on all images, at 81 %.
"""

from typing import Any

from cells import Cell, parser, run
from heads import PLAIN, RECONSTRUCTED
from loss_threshold import FLOAT8

LEVELS = (0.55, 0.60, 0.65)
BASE: dict[str, Any] = {
    "model": "resnet18_quarter", "cut": "stage2.block2", "num_clients": 3, "rounds": 20, "evaluate_every": 1, "lr": 0.05,
}  # fmt: skip
ALIGNED = {"auxiliary": "block", "align_rounds": 2, "align_epochs": 10, "memory_size": 512, "align_batch": 256}
BLOCK = {"auxiliary": "block", **PLAIN}
LITE = {"auxiliary": "lite", **RECONSTRUCTED}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "fedavg": {"scheme": "fedavg", "cut": "none"},
    "splitfed_v1": {"scheme": "splitfed_v1"},
    "splitfed_v2": {"scheme": "splitfed_v2"},
    "splitfed_v1, float8": {"scheme": "splitfed_v1", "codec": FLOAT8},
    "splitfed_v2, float8": {"scheme": "splitfed_v2", "codec": FLOAT8},
    "cse_fsl": {"scheme": "cse_fsl", **BLOCK},
    "fsl_sage": {"scheme": "fsl_sage", **ALIGNED},
    "fsl_sage, aligned eightfold": {"scheme": "fsl_sage", **ALIGNED, "align_rounds": 1, "align_epochs": 20, "align_batch": 128},
    "dsl_fed, lite + reconstruction": {"scheme": "dsl_fed", **LITE},
    "dsl_fed, lite + reconstruction, float8": {"scheme": "dsl_fed", **LITE, "codec": {"smashed": "float8"}},
    "dsl_fed, block, every 5th batch, float8": {
        "scheme": "dsl_fed", **BLOCK, "send_every": 5, "codec": {"smashed": "float8"},
    },
}  # fmt: skip
FEW = ("fsl_sage", "dsl_fed, lite + reconstruction, float8")
TINY = {"num_train": 96, "rounds": 2, "cut": "shallow"}


def cells() -> list[Cell]:
    """Return all cells."""
    return [Cell({"what": what}, "small-cifar10", {**BASE, **own}, what in FEW) for what, own in CONFIGURATIONS.items()]


if __name__ == "__main__":
    run("budget", cells(), parser("budget", __doc__).parse_args(), "Bytes until an accuracy", TINY)
