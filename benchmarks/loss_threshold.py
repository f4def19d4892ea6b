"""Loss-based asynchronous training with 8-bit floats (arXiv 2107.09786): what a threshold saves, and what it costs.

VGG11, one client, 60 epochs on the first 2,500 images of CIFAR-10, 2,000 test images, bfloat16 arithmetic: conventional split learning
with the floats it computes in, and with 8-bit ones; three thresholds, three seeds. The reduction is that of what crosses in training
against the conventional run with its activations and gradients as float32 (the paper: 1.64 to 106.7 times); accuracies are paired by
seed, and a difference whose 95 % interval contains -0.5 points is "not separated": results/loss_threshold.jsonl. `--profile full` takes
all 50,000 images.
"""

from typing import Any

from cells import Cell, parser, run

FLOAT8 = {"smashed": "float8", "cut_grad": "float8"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "conventional": {"scheme": "vanilla", "method": "backprop"},
    "conventional, float8": {"scheme": "vanilla", "method": "backprop", "codec": FLOAT8},
    **{f"threshold {t}": {"scheme": "async_loss", "threshold": t, "codec": FLOAT8} for t in (0.05, 0.2, 0.5)},
}
BASE: dict[str, Any] = {
    "data": "cifar10", "model": "vgg11", "cut": "shallow", "num_clients": 1, "lr": 0.05, "lr_schedule": "cosine",
    "evaluate_every": 20, "precision": "bfloat16", "num_test": 2_000, "num_threads": 1,
}  # fmt: skip
PROFILES = {"small": {"num_train": 2_500, "rounds": 60}, "full": {"num_train": 50_000, "rounds": 60}}
FEW = ("conventional", "threshold 0.2")
TINY = {"rounds": 3}


def cells(profile: str = "small") -> list[Cell]:
    """Return all cells."""
    size = PROFILES[profile]
    return [
        Cell(
            {"configuration": what, "images": size["num_train"], "rounds": size["rounds"]}, "small-cifar10",
            {**BASE, **size, **own}, what in FEW,
        )
        for what, own in CONFIGURATIONS.items()
    ]  # fmt: skip


if __name__ == "__main__":
    args = parser("loss_threshold", __doc__, "0,1,2", PROFILES).parse_args()
    run("loss_threshold", cells(args.profile), args, "Updating rarely", TINY)
