"""The target: decoupled against conventional split learning on the whole of CIFAR-10, paired seeds, three cuts.

ResNet-20, 50,000 images, 12 and 42 rounds of the strong schedule, bfloat16, full test set in the last five rounds. The heads are those
of the highest final accuracy on held-out training images in results/choices.jsonl, each with a 1x1 reconstruction: within a quarter of
the bottom's multiply-adds, the same with 8-bit floats, and at any price. `block` at the shallow cut is the choice of earlier loops, on
test accuracies. Three seeds on 2 cores (42 rounds take about half an hour, two hours and more where bfloat16 is emulated and
`--precision float32` taken), five where a GPU is at hand: results/parity.jsonl. "On par within d" is said only where the whole 95 %
interval lies inside.
"""

from typing import Any

from cells import Cell, parser, run

RECONSTRUCTED = {"reconstruction": "conv1x1", "aux_weight": 0.5, "reconstruction_weight": 5.0}
HEADS: dict[str, dict[str, Any]] = {
    "mlp, depth 3 + reconstruction": {"auxiliary": "mlp", "auxiliary_depth": 3, "auxiliary_width": 256, **RECONSTRUCTED},
    "lite + reconstruction": {"auxiliary": "lite", **RECONSTRUCTED},
    "wide + reconstruction": {"auxiliary": "wide", **RECONSTRUCTED},
    "block + reconstruction": {"auxiliary": "block", **RECONSTRUCTED},
}
FRUGAL = {
    "shallow": "lite + reconstruction",
    "middle": "mlp, depth 3 + reconstruction",
    "deep": "mlp, depth 3 + reconstruction",
}
BASE: dict[str, Any] = {"precision": "bfloat16", "evaluate_every": 42}
ROUNDS = (12, 42)
FEW = (("all", "conventional", 42), ("shallow", FRUGAL["shallow"], 42))
TINY = {
    "data": "digits",
    "num_train": 64,
    "num_test": 32,
    "rounds": 1,
    "warmup_rounds": 0,
    "model": "resnet8",
    "batch_size": 16,
}


def cells() -> list[Cell]:
    """Return all cells, the short ones first; one conventional run serves all cuts."""
    runs: list[tuple[str, str, dict[str, Any]]] = [("all", "conventional", {"scheme": "vanilla", "hand_over": "shared"})]
    runs += [(cut, what, {"cut": cut, **HEADS[what]}) for cut, what in FRUGAL.items()]
    runs += [(cut, "wide + reconstruction", {"cut": cut, **HEADS["wide + reconstruction"]}) for cut in FRUGAL]
    runs += [
        (cut, f"{what}, float8", {"cut": cut, **HEADS[what], "codec": {"smashed": "float8"}}) for cut, what in FRUGAL.items()
    ]
    runs.append(("shallow", "block + reconstruction", {"cut": "shallow", **HEADS["block + reconstruction"]}))
    return [
        Cell(
            {"rounds": rounds, "cut": cut, "what": what}, "strong-cifar10", {**BASE, "rounds": rounds, **own},
            (cut, what, rounds) in FEW,
        )
        for rounds in ROUNDS
        for cut, what, own in runs
    ]  # fmt: skip


if __name__ == "__main__":
    run("parity", cells(), parser("parity", __doc__, "0,1,2").parse_args(), TINY, "Decoupled against conventional")
