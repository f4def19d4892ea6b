"""The target: decoupled against conventional split learning on the whole of CIFAR-10, paired seeds, three cuts.

ResNet-20, 50,000 images, 12 and 42 rounds of the strong schedule, bfloat16, full test set in the last five rounds. The heads are those
of the highest final accuracy on held-out training images in results/choices.jsonl, each with a 1x1 reconstruction: within a quarter of
the bottom's multiply-adds, the same with 8-bit floats, and at any price. At the shallow cut `block` is the choice of earlier loops, on
test accuracies, and with half of each batch going backward the best of all within a quarter; `lite` at the middle cut lost the choice
by 0.3 points. Three seeds on 2 cores (12 rounds take a quarter of an hour, 42 an hour, and three times as long in float32 where
bfloat16 is emulated), five where a GPU is at hand: results/parity.jsonl. "On par within d" is said only where the whole 95 % interval
lies inside.
"""

from typing import Any

from cells import Cell, parser, run
from choices import DECODERS, HEADS, REBUILT

FRUGAL = {"shallow": "lite", "middle": "mlp, depth 3", "deep": "mlp, depth 3"}
BASE: dict[str, Any] = {"precision": "bfloat16", "evaluate_every": 42}
ROUNDS = (12, 42)
FEW = (("all", "conventional", 42), ("shallow", FRUGAL["shallow"] + REBUILT, 42))


def decoupled(cut: str, head: str, more: str = "", **own: Any) -> tuple[str, str, dict[str, Any]]:
    """Return the cut, the name and the fields of a run whose head has a reconstruction beside it."""
    return cut, head + REBUILT + more, {"cut": cut, **HEADS[head], **DECODERS[REBUILT], **own}


def cells() -> list[Cell]:
    """Return all cells, the short ones first; one conventional run serves all cuts."""
    runs: list[tuple[str, str, dict[str, Any]]] = [("all", "conventional", {"scheme": "vanilla", "hand_over": "shared"})]
    runs += [decoupled(cut, head) for cut, head in FRUGAL.items()]
    runs += [decoupled(cut, "wide") for cut in FRUGAL]
    runs += [decoupled(cut, head, ", float8", codec={"smashed": "float8"}) for cut, head in FRUGAL.items()]
    runs += [decoupled("shallow", "block", ", half backward", backward_share=0.5)]
    runs += [decoupled("shallow", "block"), decoupled("middle", "lite")]
    return [
        Cell(
            {"rounds": rounds, "cut": cut, "what": what}, "strong-cifar10", {**BASE, "rounds": rounds, **own},
            (cut, what, rounds) in FEW,
        )
        for rounds in ROUNDS
        for cut, what, own in runs
    ]  # fmt: skip


if __name__ == "__main__":
    run("parity", cells(), parser("parity", __doc__, "0,1,2").parse_args(), "Decoupled against conventional")
