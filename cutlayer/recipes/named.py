"""Named, frozen recipes: the numbers of the papers, each with its source."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import unknown


class Named(NamedTuple):
    """A row of the table: flat fields, and one line: what it is and where its numbers come from."""

    fields: Mapping[str, Any]
    line: str


# arXiv 2601.19261, section IV-A: SGD, momentum 0.9, lr 0.001, batch 128, 50 epochs; one fully connected auxiliary layer.
# Weight decay, augmentation and a schedule are not mentioned there, so there are none.
DSL_TEXT = {
    "scheme": "dsl", "model": "resnet110", "cut": "deep", "auxiliary": "linear", "rounds": 50, "batch_size": 128,
    "optimizer": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 0.0, "lr_schedule": "constant", "augment": False,
    "memory_format": "channels_last",
}  # fmt: skip

# The authors' code (jan6c10/dgl.py): 2x2 pooling and 3 layers of 256 with BatchNorm, weight decay 1e-4, crops and flips,
# contiguous index ranges, one shared client model. Its double client step and its frozen layer are not copied.
DSL_CODE = DSL_TEXT | {
    "data": "cifar10", "auxiliary": "mlp", "auxiliary_depth": 3, "auxiliary_width": 256, "weight_decay": 1e-4, "augment": True,
    "partition": "contiguous",
}  # fmt: skip

# The same with what made the logs that the authors published (deep cut; docs/papers.md).
DSL_LOGGED = DSL_CODE | {"repeat_steps": True, "freeze_first": True}

# No paper's numbers: He et al. (arXiv 1512.03385) for the network, momentum and batch, with a cosine from lr 0.1 after 3
# warm-up rounds, weight decay 5e-4, the last incomplete batch dropped; head and reconstruction weighted 0.5 and 5 because
# that was best of what was measured.
STRONG = {
    "scheme": "dsl", "data": "cifar10", "model": "resnet20", "cut": "shallow", "rounds": 42, "batch_size": 128, "drop_last": True,
    "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "lr_schedule": "cosine", "warmup_rounds": 3,
    "auxiliary": "block", "aux_weight": 0.5, "reconstruction": "conv2", "reconstruction_weight": 5.0,
    "memory_format": "channels_last",
}  # fmt: skip

RECIPES: dict[str, Named] = {
    "demo": Named(
        {
            "scheme": "dsl_seq", "data": "digits", "model": "resnet20", "cut": "shallow", "num_clients": 2, "rounds": 12,
            "batch_size": 64, "lr": 0.1, "lr_schedule": "cosine", "warmup_rounds": 1, "weight_decay": 5e-4, "auxiliary": "block",
            "num_threads": 1, "diagnose_every": 10,
        },
        "handwritten digits (bundled, no download), ResNet-20, 2 clients, decoupled: half a minute on 2 cores",
    ),
    "dsl-cifar10": Named(DSL_TEXT | {"data": "cifar10"}, "CIFAR-10 decoupled, as the paper's text has it (arXiv 2601.19261, IV-A)"),
    "dsl-cifar100": Named(DSL_TEXT | {"data": "cifar100"}, "the same on CIFAR-100"),
    "dsl-code-cifar10": Named(DSL_CODE, "CIFAR-10 decoupled, as the authors' code has it"),
    "dsl-logged-cifar10": Named(DSL_LOGGED, "the same with the double client step and the frozen layer of the authors' logged runs"),
    "strong-cifar10": Named(STRONG, "ResNet-20 trained until it is good: cosine from lr 0.1, 42 rounds, block head with reconstruction"),
    "small-cifar10": Named(
        STRONG | {"num_train": 10_000, "rounds": 12, "precision": "bfloat16", "evaluate_every": 3},
        "the strong recipe on the first 10,000 images, 12 rounds, bfloat16: a few minutes on 2 cores",
    ),
    "images": Named(
        {
            "scheme": "dsl", "data": "image_folder", "model": "resnet50", "cut": "middle", "rounds": 90, "batch_size": 256, "lr": 0.1,
            "weight_decay": 1e-4, "lr_schedule": "cosine", "warmup_rounds": 5, "auxiliary": "mlp", "memory_format": "channels_last",
        },
        "your own images in folders by class, ResNet-50 at 224x224, decoupled: for a GPU (--data-dir FOLDER --device cuda)",
    ),
    "text": Named(
        {
            "scheme": "dsl", "data": "agnews", "model": "transformer", "cut": "block1", "num_clients": 2, "rounds": 5,
            "batch_size": 64, "optimizer": "adam", "lr": 3e-3, "auxiliary": "pool_linear",
        },
        "news texts in four classes (AG News), a small transformer, 2 clients, decoupled: minutes on 2 cores",
    ),
    "characters": Named(
        {
            "scheme": "dsl", "data": "shakespeare", "model": "char_transformer", "cut": "block1", "num_clients": 2, "rounds": 3,
            "batch_size": 64, "optimizer": "adam", "lr": 3e-3, "auxiliary": "pool_linear",
        },
        "the next character of Shakespeare, a small causal transformer, 2 clients, decoupled",
    ),
    "graphs": Named(
        {
            "data": "mutag", "model": "gin", "cut": "readout", "num_clients": 2, "rounds": 50, "batch_size": 32, "optimizer": "adam",
            "lr": 0.01, "num_threads": 1,
        },
        "molecules as graphs (TUDataset MUTAG), GIN cut at its readout, 2 clients: seconds on 2 cores",
    ),
}  # fmt: skip


def named(name: str) -> dict[str, Any]:
    """Return a named recipe's fields; raises BadInput on an unknown name."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return {"name": name, **RECIPES[name].fields}
