"""Loss-based asynchronous training over models and clients (arXiv 2107.09786): what thresholds save in bytes and client computation.

VGG11, VGG13 and ResNet-18 (at a quarter of its width: a step of the whole takes 6 s on 2 cores), 1, 5 and 10 clients, the first 10,000
images of CIFAR-10, 2,000 test images, 10 rounds, bfloat16, lr 0.05 (VGG13: 0.01); the conventional run beside three thresholds with 8-bit
floats: results/asynchronous.jsonl. One client of VGG11 over 60 epochs and three seeds is benchmarks/loss_threshold.py.
"""

from typing import Any

from cells import Cell, parser, run
from loss_threshold import FLOAT8

MODELS = ("resnet18_quarter", "vgg11", "vgg13")
BASE: dict[str, Any] = {
    "rounds": 10, "num_test": 2_000, "lr": 0.05, "evaluate_every": 2, "warmup_rounds": 1, "memory_format": "contiguous",
}  # fmt: skip
LR = {"vgg13": {"lr": 0.01}}  # at 0.05 it stays at 13 % for ten rounds
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "conventional": {"scheme": "vanilla", "method": "backprop"},
    **{f"threshold {t}": {"scheme": "async_loss", "threshold": t, "codec": FLOAT8} for t in (0.05, 0.1, 0.2)},
}
TINY = {"rounds": 3}


def cells() -> list[Cell]:
    """Return all cells, the cheapest model first."""
    return [
        Cell(
            {"model": model, "clients": n, "what": what}, "small-cifar10",
            {**BASE, **LR.get(model, {}), "model": model, "num_clients": n, **own},
            (model, n, what) == ("vgg11", 5, "threshold 0.1"),
        )
        for model in MODELS
        for n in (1, 5, 10)
        for what, own in CONFIGURATIONS.items()
    ]  # fmt: skip


if __name__ == "__main__":
    run("asynchronous", cells(), parser("asynchronous", __doc__).parse_args(), "Loss-based asynchronous training", TINY)
