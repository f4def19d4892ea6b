"""Decoupled split learning as its paper measures it (arXiv 2601.19261): accuracy, bytes, memory and seconds of ResNet-110.

The first 10,000 images of CIFAR-10 and CIFAR-100, 6 rounds, full test set, bfloat16; 1, 5 and 10 clients; cuts after 12, 17 and 26
blocks; one conventional run serves all cuts. Under the paper's text (one linear layer, lr 0.001), the authors' code (three hidden
layers) and the strong recipe (cosine from lr 0.02, block head with a 1x1 reconstruction). About 9 minutes a run on 2 cores, cheapest and
most cited first: results/decoupled.jsonl. For a GPU, `--profile slice` is four runs side by side in ten minutes (one client, all
images of CIFAR-10, 12 rounds, a strong recipe from lr 0.1), and `--profile full` is everything over the paper's 50 rounds.
"""

from typing import Any

from cells import Cell, parser, run

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("dsl-cifar10", {}),
    "code": ("dsl-code-cifar10", {}),
    "strong": (
        "small-cifar10",
        {"model": "resnet110", "warmup_rounds": 1, "num_train": None},
    ),
}
PROFILES: dict[str, dict[str, Any]] = {
    "small": {"num_train": 10_000, "rounds": 6, "evaluate_every": 3, "precision": "bfloat16"},
    "slice": {"rounds": 12, "evaluate_every": 1, "precision": "bfloat16"},
    "full": {"rounds": 50, "evaluate_every": 1, "precision": "bfloat16"},
}
SLICE = ("cifar10", 1, "strong")
LR = {("small", "strong"): {"lr": 0.02}}  # 110 layers do not start at 0.1 within 6 rounds of so few images
HEAD = {"strong": {"auxiliary": "block", "reconstruction": "conv1x1"}}
CUTS = ("shallow", "middle", "deep")


def cells(profile: str = "small") -> list[Cell]:
    """Return all cells, one client and CIFAR-10 first."""
    found = []
    for data in ("cifar10", "cifar100"):
        for n in (1, 5, 10):
            for name, (base, own) in RECIPES.items():
                if profile == "slice" and (data, n, name) != SLICE:
                    continue
                both: dict[str, Any] = {
                    "data": data,
                    "num_clients": n,
                    **own,
                    **PROFILES[profile],
                    **LR.get((profile, name), {}),
                }
                labels = {"profile": profile, "data": data, "clients": n, "recipe_of": name}
                few = (data, n, name) == SLICE
                vanilla = {"scheme": "vanilla", "hand_over": "shared", "method": "backprop", "cut": "shallow"}
                found.append(Cell({**labels, "what": "conventional"}, base, {**both, **vanilla}, few))
                for cut in CUTS:
                    found.append(
                        Cell(
                            {**labels, "what": f"decoupled, {cut}"},
                            base,
                            {**both, "cut": cut, **HEAD.get(name, {})},
                            few and cut == "deep",
                        )
                    )
    return found


if __name__ == "__main__":
    args = parser("decoupled", __doc__, profiles=PROFILES).parse_args()
    run("decoupled", cells(args.profile), args, "Decoupled split learning")
