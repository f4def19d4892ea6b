"""Choices of the head at the cut, made on 5,000 held-out training images: one factor at a time, and what lambda buys.

ResNet-20, shallow cut, the first 10,000 images of CIFAR-10, 12 rounds of the strong schedule, bfloat16, evaluated on the last 5,000
training images; the test set is left alone. Heads by kind, depth and width, each with and without a 1x1 reconstruction; heads whose client
goes backward through a share of each batch; the server's gradient with weight lambda on every k-th step. About 3 minutes a run on 2 cores:
results/choices.jsonl.
"""

from typing import Any

from cells import Cell, parser, run

HEADS: dict[str, dict[str, Any]] = {
    "pool_linear": {"auxiliary": "pool_linear"},
    **{f"mlp, depth {d}": {"auxiliary": "mlp", "auxiliary_depth": d, "auxiliary_width": 256} for d in (1, 2, 3)},
    **{f"mlp, width {w}": {"auxiliary": "mlp", "auxiliary_depth": 3, "auxiliary_width": w} for w in (64, 1024)},
    "lite": {"auxiliary": "lite"},
    "block": {"auxiliary": "block"},
    "wide": {"auxiliary": "wide"},
    "linear, lr 0.01": {"auxiliary": "linear", "lr": 0.01},
}
DECODERS: dict[str, dict[str, Any]] = {
    "": {"reconstruction": "none", "aux_weight": 1.0},
    " + reconstruction": {"reconstruction": "conv1x1", "aux_weight": 0.5, "reconstruction_weight": 5.0},
}
SHARES = (0.5, 0.25)
LAMBDAS = ((0.1, 1), (0.5, 1), (1.0, 1), (1.0, 4), (1.0, 10))
TINY = {
    "data": "digits", "num_train": 64, "num_held_out": 32, "rounds": 1, "warmup_rounds": 0, "lr_schedule": "constant", "batch_size": 16,
    "model": "resnet8",
}  # fmt: skip


def cells() -> list[Cell]:
    """Return all cells."""
    base: dict[str, Any] = {"num_held_out": 5000}
    found = [Cell({"what": "conventional"}, "small-cifar10", {**base, "scheme": "vanilla", "hand_over": "shared"}, True)]
    for head, own in HEADS.items():
        for decoder, more in DECODERS.items():
            found.append(Cell({"what": head + decoder}, "small-cifar10", {**base, **own, **more}, head + decoder == "lite"))
    for share in SHARES:  # what goes backward at the client
        for head in ("lite", "block"):
            own = {**HEADS[head], **DECODERS[" + reconstruction"], "backward_share": share}
            found.append(Cell({"what": f"{head} + reconstruction, {share} backward"}, "small-cifar10", {**base, **own}))
    for weight, every in LAMBDAS:
        own = {**HEADS["mlp, depth 3"], **DECODERS[""], "lambda_weight": weight, "lambda_every": every}
        found.append(Cell({"what": f"mlp, depth 3, lambda {weight} every {every}"}, "small-cifar10", {**base, **own}))
    found.append(
        Cell({"what": "floor: bottom as drawn"}, "small-cifar10", {**base, "aux_weight": 0.0, "reconstruction": "none"})
    )
    return found


if __name__ == "__main__":
    run("choices", cells(), parser("choices", __doc__).parse_args(), TINY, "Choices at the cut")
