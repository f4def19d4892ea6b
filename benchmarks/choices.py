"""Choices of the head at the cut, made on 5,000 held-out training images: one factor at a time, and what lambda buys.

ResNet-20, the first 10,000 images of CIFAR-10, 12 rounds of the strong schedule, bfloat16, evaluated on the last 5,000 training images;
the test set is left alone. At three cuts the heads that may be chosen, also with a client that goes backward through a share of each
batch. At the shallow cut heads by kind, depth and width, each with and without a 1x1 reconstruction, and the server's gradient with
weight lambda on every k-th step. About 3 minutes a run on 2 cores: results/choices.jsonl.
"""

from typing import Any

from cells import Cell, parser, run
from heads import PLAIN, RECONSTRUCTED

HEADS: dict[str, dict[str, Any]] = {
    "pool_linear": {"auxiliary": "pool_linear"},
    **{f"mlp, depth {d}": {"auxiliary": "mlp", "auxiliary_depth": d, "auxiliary_width": 256} for d in (1, 2, 3)},
    **{f"mlp, width {w}": {"auxiliary": "mlp", "auxiliary_depth": 3, "auxiliary_width": w} for w in (64, 1024)},
    "lite": {"auxiliary": "lite"},
    "block": {"auxiliary": "block"},
    "wide": {"auxiliary": "wide"},
    "linear, lr 0.01": {"auxiliary": "linear", "lr": 0.01},
}
REBUILT = " + reconstruction"
DECODERS: dict[str, dict[str, Any]] = {"": PLAIN, REBUILT: RECONSTRUCTED}
LAMBDAS = ((0.1, 1), (0.5, 1), (1.0, 1), (1.0, 4), (1.0, 10))
TINY = {"num_test": None, "num_held_out": 32}


def cell(cut: str, what: str, own: dict[str, Any], few: bool = False) -> Cell:
    """Return the cell of a choice at a cut."""
    return Cell({"cut": cut, "what": what}, "small-cifar10", {"num_held_out": 5000, **own}, few)


def cells() -> list[Cell]:
    """Return all cells, what may be chosen first; one conventional run serves all cuts."""
    found = [cell("all", "conventional", {"scheme": "vanilla", "hand_over": "shared"}, True)]
    plain, rebuilt = DECODERS.items()
    for cut in ("shallow", "middle", "deep"):
        for head in ("mlp, depth 3", "lite", "block", "wide"):
            own = {"cut": cut, **HEADS[head], **rebuilt[1]}
            found.append(cell(cut, head + rebuilt[0], own, (cut, head) == ("shallow", "lite")))
        for head, share in (("lite", 0.5), ("block", 0.5), ("block", 0.25)):
            own = {"cut": cut, **HEADS[head], **rebuilt[1], "backward_share": share}
            found.append(cell(cut, f"{head}{rebuilt[0]}, {share} backward", own))
    there = {str(each) for each in found}
    for head, own in HEADS.items():
        for decoder, more in (plain, rebuilt):
            each = cell("shallow", head + decoder, {**own, **more})
            found += [] if str(each) in there else [each]
    for weight, every in LAMBDAS:
        own = {**HEADS["mlp, depth 3"], **plain[1], "lambda_weight": weight, "lambda_every": every}
        found.append(cell("shallow", f"mlp, depth 3, lambda {weight} every {every}", own))
    found.append(cell("shallow", "floor: bottom as drawn", {"aux_weight": 0.0, "reconstruction": "none"}))
    return found


if __name__ == "__main__":
    run("choices", cells(), parser("choices", __doc__).parse_args(), "Choices at the cut", TINY)
