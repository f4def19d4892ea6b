"""Every scheme side by side: accuracy and bytes on 10,000 images of CIFAR-10 between five clients, IID and Dirichlet(0.5).

ResNet-20, shallow cut, 12 rounds of the strong schedule, full test set, bfloat16. Simulated seconds are those of links of 20
Mbit/s up, 50 down and 30 ms each way, clients of 10 and a server of 100 billion multiply-adds a second: results/schemes.jsonl.
"""

from typing import Any

from cells import Cell, parser, run
from heads import RECONSTRUCTED

from cutlayer.data.partition import PARTITION_VERSION
from cutlayer.recipes.recipe import options_for, with_scheme
from cutlayer.recipes.schemes import SCHEMES

HEAD = {"auxiliary": "block", **RECONSTRUCTED}
CLOCK = {"uplink": 20.0, "downlink": 50.0, "latency": 30.0, "speeds": (1e10,), "server_speed": 1e11}
FEW = (("splitfed_v2", "dirichlet"), ("fedavg", "iid"))
# an alignment on the paper's memory would take hours here, zeroth order diverges at lr 0.1, and only marks let a run stop
OWN: dict[str, dict[str, Any]] = {
    "fsl_sage": {"align_rounds": 4, "align_epochs": 10, "memory_size": 256, "align_batch": 256},
    "async_splitfed": {"checkpoint_every": 200},
    "hosl": {"lr": 1e-3},
    "heron_sfl": {"lr": 1e-3},
}
TINY = {"num_train": 320, "rounds": 2}


def cell(partition: str, name: str, more: str = "", version: int = 1, **changed: Any) -> Cell:
    """Return the cell of a scheme on a partition, or with fields changed and more said of it.

    A Dirichlet cell of partition version 1 repeats a published row.
    """
    fields: dict[str, Any] = {"num_clients": 5, "partition": partition, "alpha": 0.5, **SCHEMES[name].fields, "scheme": name}
    fields |= {"partition_version": version} if partition == "dirichlet" else {}
    own = options_for(with_scheme(fields))
    fields |= {k: v for k, v in HEAD.items() if k in own} | OWN.get(name, {}) | CLOCK
    label = partition + (f", version {version}" if version > 1 else "")
    return Cell({"scheme": name + more, "partition": label}, "small-cifar10", fields | changed, (name + more, label) in FEW)


def cells() -> list[Cell]:
    """Return all cells."""
    found = [cell(partition, name) for partition in ("iid", "dirichlet") for name in SCHEMES]
    again = [cell("dirichlet", name, version=PARTITION_VERSION) for name in SCHEMES]
    return [*found, cell("iid", "dni", ", told every gradient", true_every=1), *again]


if __name__ == "__main__":
    run("schemes", cells(), parser("schemes", __doc__).parse_args(), "Every scheme side by side", TINY)
