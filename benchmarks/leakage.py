"""What a server learns of inputs and of labels from what crosses: `cutlayer audit` of runs at three cuts, with heads, 8 bits and noise.

ResNet-20, the first 10,000 images of CIFAR-10, 6 rounds of the strong schedule, bfloat16, full test set, one client. Of the test set
5,000 images are the attacker's, whose activations it knows, and 5,000 others are attacked. At each cut conventional training, and
decoupled with `block`, with and without a 1x1 reconstruction; at the shallow cut also the bottom as it was drawn, conventional with
8-bit floats, with Gaussian noise on clipped activations and with updates by a loss threshold, and U-shaped, whose labels stay home.
Four minutes a run on one core, half of which is the attack: results/leakage.jsonl.
"""

from pathlib import Path
from typing import Any

from cells import Cell, parser, run
from choices import DECODERS, HEADS

from cutlayer.audits import Effort, audit

FLOAT8 = {"smashed": "float8", "cut_grad": "float8"}
CONVENTIONAL: dict[str, Any] = {"scheme": "vanilla", "hand_over": "shared"}
SHALLOW: dict[str, dict[str, Any]] = {
    "bottom as drawn": {"aux_weight": 0.0, "reconstruction": "none"},
    "conventional, float8": {**CONVENTIONAL, "codec": FLOAT8},
    **{
        f"conventional, noise {sigma}": {**CONVENTIONAL, "codec": {"smashed": f"gaussian_noise@{sigma}:50"}}
        for sigma in (0.01, 0.05)
    },
    "loss threshold 0.1, float8": {"scheme": "async_loss", "threshold": 0.1, "codec": FLOAT8},
    "u_shaped": {"scheme": "u_shaped", "tail": "last"},
}
FEW = (("shallow", "conventional"), ("shallow", "u_shaped"))
EFFORT, TINY = Effort(epochs=10), Effort(samples=16, epochs=1)


def cells() -> list[Cell]:
    """Return all cells."""
    runs: list[tuple[str, str, dict[str, Any]]] = []
    for cut in ("shallow", "middle", "deep"):
        runs.append((cut, "conventional", CONVENTIONAL))
        runs += [(cut, "block" + rebuilt, {**HEADS["block"], **own}) for rebuilt, own in DECODERS.items()]
    runs += [("shallow", what, own) for what, own in SHALLOW.items()]
    return [
        Cell(
            {"cut": cut, "what": what},
            "small-cifar10",
            {"rounds": 6, "evaluate_every": 3, "cut": cut, **own},
            (cut, what) in FEW,
        )
        for cut, what, own in runs
    ]


def attacked(folder: Path, effort: Effort) -> dict[str, Any]:
    """Return what attacks on a finished run find."""
    every = audit(folder, effort=effort).values()
    found = {name: value for figures in every for name, value in figures.items() if isinstance(value, float)}
    return {"audit": {**effort._asdict(), **found}}


if __name__ == "__main__":
    args = parser("leakage", __doc__).parse_args()
    run("leakage", cells(), args, "What crosses tells", more=lambda folder: attacked(folder, TINY if args.tiny else EFFORT))
