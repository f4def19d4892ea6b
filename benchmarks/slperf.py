"""SLPerf's table, measured: vanilla, U-shaped and SplitFed V1, V2, V3 on images (ResNet-20) and graphs (GIN), one process.

Images: 10,000 of CIFAR-10, five clients, 12 rounds of the strong schedule; what holds where classes are disjoint, and averaging periods.
Graphs: five TUDataset sets, five clients (two where classes are disjoint), 60 rounds of Adam; cuts after the first and the last
convolution and at the readout. IID, Dirichlet(0.5) and disjoint classes: results/slperf.jsonl.
"""

from typing import Any

from cells import Cell, parser, run

from cutlayer.data.partition import PARTITION_VERSION
from cutlayer.recipes.schemes import SCHEMES

TABLE = ("centralised", "fedavg", "vanilla", "u_shaped", "splitfed_v1", "splitfed_v2", "splitfed_v3")
SETS = ("mutag", "enzymes", "proteins", "imdb_binary", "nci1")
# accuracies that rounds are counted to: nine tenths of what centralised training reaches, in steps of five points
TARGETS = {"cifar10": 0.60, "mutag": 0.85, "enzymes": 0.30, "proteins": 0.65, "imdb_binary": 0.55, "nci1": 0.65}
GIN: dict[str, Any] = {"rounds": 60, "lr_schedule": "steps"}
TAILED = {"cut": "conv2", "tail": "readout"}
CUTS = {"G1": "conv1", "G3": "conv4"}  # beside G2, the readout
# all clients are there at every average
EQUAL: dict[str, Any] = {"partition": "classes_equal"}
# no sample is normalised with others; in smaller steps, because it learns slower and diverges sooner
GROUP: dict[str, Any] = {"model": "resnet20_group", "batch_size": 16, "lr": 0.02}
# small batches, because averages of five clients' steps are steps of five times the batch
OFTEN: dict[str, dict[str, Any]] = {
    "vanilla, batches of 32": {"scheme": "vanilla"},
    "splitfed_v1, 1 round, batches of 32": {"scheme": "splitfed_v1"},
    "splitfed_v1, 1 batch": {"scheme": "splitfed_v1", "sync_every": "1 batch"},
    "splitfed_v1, 5 batches": {"scheme": "splitfed_v1", "sync_every": "5 batches"},
    "splitfed_v1, 1 batch, pooled BatchNorm": {"scheme": "splitfed_v1", "sync_every": "1 batch", "batch_norm": "pooled"},
    "splitfed_v2, 1 batch, batch-major": {"scheme": "splitfed_v2", "sync_every": "1 batch", "server_order": "batch_major"},
    "splitfed_v2, 5 batches, batch-major": {"scheme": "splitfed_v2", "sync_every": "5 batches", "server_order": "batch_major"},
    "splitfed_v2, 1 batch, concatenated": {"scheme": "splitfed_v2", "sync_every": "1 batch", "server_order": "concatenated"},
    "splitfed_v2, 5 batches, concatenated": {"scheme": "splitfed_v2", "sync_every": "5 batches", "server_order": "concatenated"},
    "dsl_fed, 1 batch, concatenated": {"scheme": "dsl_fed", "sync_every": "1 batch", "server_order": "concatenated"},
    "splitfed_v1, 1 batch, equal shares": {**EQUAL, "scheme": "splitfed_v1", "sync_every": "1 batch"},
    "splitfed_v1, 5 batches, equal shares": {**EQUAL, "scheme": "splitfed_v1", "sync_every": "5 batches"},
    "splitfed_v2, 1 batch, concatenated, equal shares": {
        **EQUAL, "scheme": "splitfed_v2", "sync_every": "1 batch", "server_order": "concatenated",
    },
    "dsl_fed, 1 batch, concatenated, equal shares": {
        **EQUAL, "scheme": "dsl_fed", "sync_every": "1 batch", "server_order": "concatenated",
    },
    "splitfed_v1, 1 batch, equal shares, group norm": {**EQUAL, **GROUP, "scheme": "splitfed_v1", "sync_every": "1 batch"},
    "splitfed_v1, 1 batch, equal shares, group norm, 36 rounds": {
        **EQUAL, **GROUP, "scheme": "splitfed_v1", "sync_every": "1 batch", "rounds": 36,
    },
    "vanilla, equal shares, group norm": {**EQUAL, **GROUP, "scheme": "vanilla"},
    "splitfed_v1, 1 round, equal shares, group norm": {**EQUAL, **GROUP, "scheme": "splitfed_v1"},
    "splitfed_v1, 5 batches, equal shares, group norm": {**EQUAL, **GROUP, "scheme": "splitfed_v1", "sync_every": "5 batches"},
}  # fmt: skip
PERIODS = ("1 batch", "5 batches", "25 batches", "1 round", "5 rounds", "never")
SWEEPS: tuple[tuple[str, str, tuple[str, ...], dict[str, Any]], ...] = (
    ("dirichlet", "", PERIODS, {"batch_size": 64}),
    ("iid", "", PERIODS, {"batch_size": 64}),
    ("dirichlet", ", group norm", ("1 batch", "5 batches", "1 round"), GROUP),
)
TINY = {"num_train": 100, "cut": "shallow", "batch_size": 8, "optimizer": "sgd", "lr": 0.01}


def row(task: str, partition: str, what: str, base: str, fields: dict[str, Any]) -> Cell:
    """Return the cell of a line of the table."""
    few = (task, partition, what) in {
        ("cifar10", "classes", "splitfed_v2, 1 batch, concatenated"),
        ("cifar10", "classes", "vanilla"),
    }
    version = {"partition_version": 1} if partition == "dirichlet" else {}  # rows from before version 2 can be repeated
    return Cell({"task": task, "partition": partition, "what": what}, base, {"partition": partition, **version, **fields}, few)


def schemes(partition: str) -> tuple[str, ...]:
    """Return the table's schemes; centralised training has all data anyway."""
    return TABLE if partition == "iid" else TABLE[1:]


def graphs() -> list[Cell]:
    """Return the cells on graphs, small sets first."""
    found = []
    for name in SETS:
        for partition, n in (("iid", 5), ("dirichlet", 5), ("classes", 2)):
            for scheme in schemes(partition):
                own = TAILED if scheme == "u_shaped" else {}
                fields = {"data": name, "num_clients": n, **GIN, **SCHEMES[scheme].fields, "scheme": scheme, **own}
                found.append(row(name, partition, scheme, "graphs", fields))
        for cut, at in CUTS.items():
            fields = {"data": name, "num_clients": 5, **GIN, "scheme": "vanilla", "cut": at}
            found.append(row(name, "iid", f"vanilla at {cut}", "graphs", fields))
    for partition in ("iid", "dirichlet"):
        for scheme, own in (("vanilla", {}), ("u_shaped", TAILED)):
            fields = {"data": "enzymes", "num_clients": 5, **GIN, **SCHEMES[scheme].fields, "scheme": scheme, **own}
            found.append(row("enzymes", partition, f"{scheme}, Adam handed over", "graphs", {**fields, "hand_over": "carry"}))
    return found


def images() -> list[Cell]:
    """Return the cells on images."""
    base: dict[str, Any] = {"num_clients": 5, "evaluate_every": 1}
    plain = [
        row("cifar10", partition, scheme, "small-cifar10", {**base, **SCHEMES[scheme].fields, "scheme": scheme})
        for partition in ("classes", "iid", "dirichlet")
        for scheme in schemes(partition)
    ]
    often = [row("cifar10", "classes", what, "small-cifar10", {**base, "batch_size": 32, **own}) for what, own in OFTEN.items()]
    found = sorted([*plain, *often], key=lambda cell: cell.labels["partition"] != "classes")
    ordered = {"scheme": "splitfed_v2", "server_order": "batch_major"}  # dsl_fed's order, with gradients
    for version in (1, PARTITION_VERSION):
        what = "splitfed_v2, batch-major" + (f", partition version {version}" if version > 1 else "")
        fields = {**base, **ordered, "partition_version": version}
        found.append(row("cifar10", "dirichlet", what, "small-cifar10", fields))
    for partition, norm, periods, own in SWEEPS:
        for period in periods:
            fields = {**base, **own, "scheme": "splitfed_v1", "sync_every": period, "rounds": 10}
            found.append(row("cifar10", partition, f"splitfed_v1 every {period}{norm}", "small-cifar10", fields))
    return found


def cells() -> list[Cell]:
    """Return all cells, graphs first."""
    return [*graphs(), *images()]


if __name__ == "__main__":
    run("slperf", cells(), parser("slperf", __doc__).parse_args(), "SLPerf's table", TINY)
