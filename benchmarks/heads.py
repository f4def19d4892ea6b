"""What the auxiliary head decides: conventional against decoupled split learning on 10,000 images of CIFAR-10, 3 seeds.

ResNet-20, shallow cut, 12 rounds of the strong schedule, full test set, bfloat16; about an hour on 2 cores: results/heads.jsonl.
"""

from typing import Any

from cells import Cell, parser, run

RECONSTRUCTED = {"reconstruction": "conv1x1", "aux_weight": 0.5, "reconstruction_weight": 5.0}
PLAIN = {"reconstruction": "none", "aux_weight": 1.0}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "conventional": {"scheme": "vanilla", "hand_over": "shared"},
    "linear": {"auxiliary": "linear", **PLAIN},
    "mlp": {"auxiliary": "mlp", **PLAIN},
    "lite + reconstruction": {"auxiliary": "lite", **RECONSTRUCTED},
    "block": {"auxiliary": "block", **PLAIN},
    "block + reconstruction": {"auxiliary": "block", **RECONSTRUCTED},
    "lite + reconstruction, half backward": {"auxiliary": "lite", **RECONSTRUCTED, "backward_share": 0.5},
    "block + reconstruction, half backward": {"auxiliary": "block", **RECONSTRUCTED, "backward_share": 0.5},
    "block + reconstruction, quarter backward": {"auxiliary": "block", **RECONSTRUCTED, "backward_share": 0.25},
    "block + reconstruction, float8": {"auxiliary": "block", **RECONSTRUCTED, "codec": {"smashed": "float8"}},
}
FEW = ("conventional", "lite + reconstruction")


def cells() -> list[Cell]:
    """Return all cells."""
    return [Cell({"configuration": what}, "small-cifar10", own, what in FEW) for what, own in CONFIGURATIONS.items()]


if __name__ == "__main__":
    run("heads", cells(), parser("heads", __doc__, "0,1,2").parse_args(), "What the auxiliary head decides")
