"""What the authors' code does beyond its text (arXiv 2601.19261), one thing at a time: double step, frozen layer, greedy server.

ResNet-110 on the first 10,000 images of CIFAR-10, lr 0.001, 6 rounds, full test set, bfloat16, one client. At the deep cut: the code's
recipe and head with one step a batch, as the text has it, with every step taken twice, with the head's first layer frozen, and both, as the
published logs were made; at the shallow and the middle cut the server in 3 and 2 pieces with heads of their own. Conventional beside them,
also with twice the lr at the client, and the server alone on a bottom as it was drawn: results/authors.jsonl. With `--out runs/decoupled`
the three runs that are also cells of decoupled.py (the authors' code, one client) are not run twice. `--profile full`: all images and 50
rounds, as the authors' logs; `full-cifar10-5`, `full-cifar100-1` and so on are the logged pairs with more clients and on CIFAR-100.
"""

from typing import Any

from cells import Cell, parser, run

PIECES = {"shallow": "stage2.block9,stage3.block6", "middle": "stage3.block1"}
VANILLA: dict[str, Any] = {"scheme": "vanilla", "hand_over": "shared", "method": "backprop"}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "conventional": VANILLA,
    "conventional, client lr 0.002": {**VANILLA, "client_lr": 0.002},
    "decoupled, deep": {},
    "decoupled, deep, double step": {"repeat_steps": True},
    "decoupled, deep, frozen layer": {"freeze_first": True},
    "decoupled, deep, both: as logged": {"repeat_steps": True, "freeze_first": True},
    "server alone, bottom as drawn": {"aux_weight": 0.0},
    **{f"decoupled, {cut}": {"cut": cut} for cut in PIECES},
    **{
        f"decoupled, {cut}, as coded": {"cut": cut, "server_cuts": pieces, "repeat_steps": True, "freeze_first": True}
        for cut, pieces in PIECES.items()
    },
}
FULL: dict[str, Any] = {"rounds": 50, "precision": "bfloat16"}
LOGGED = {
    f"full-{data}-{n}": FULL | {"data": data, "num_clients": n}
    for data in ("cifar10", "cifar100")
    for n in (1, 5, 10)
    if (data, n) != ("cifar10", 1)  # of `full`
}
PROFILES: dict[str, dict[str, Any]] = {
    "small": {"num_train": 10_000, "rounds": 6, "evaluate_every": 3, "precision": "bfloat16"},
    "full": FULL,
    **LOGGED,
}
FEW = ("conventional", "decoupled, deep, both: as logged")
TINY = {"model": "resnet20"}


def cells(profile: str = "small") -> list[Cell]:
    """Return all cells of a profile: of the logged ones the pair alone."""
    return [
        Cell({"profile": profile, "what": what}, "dsl-code-cifar10", {**PROFILES[profile], **own}, what in FEW)
        for what, own in CONFIGURATIONS.items()
        if profile not in LOGGED or what in FEW
    ]


if __name__ == "__main__":
    args = parser("authors", __doc__, profiles=PROFILES).parse_args()
    run("authors", cells(args.profile), args, "The authors' code", TINY)
