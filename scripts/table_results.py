"""The sections of docs/results.md on the tables of cells: what was run, with the lines of the rows, and what was not."""

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from result_rows import Row, client_share, training_bytes

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from cells import plateau, reached  # noqa: E402 - a file of the folder above
from slperf import TARGETS  # noqa: E402

Rows = Callable[[str], list[Row]]
Column = Callable[[Row], str]
MISSING = 12  # so many cells that were not run are named one by one


def cost(row: Row) -> str:
    """Return the client's multiply-adds, a conventional client's being 1."""
    share = client_share(row)
    return "" if share is None else f"{share:.2f}"


def shown(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"


def size(nbytes: float) -> str:
    """Return bytes in words."""
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def until(level: float, row: Row) -> str:
    """Return the bytes of training until a run reaches an accuracy."""
    r = reached(row["curve"], level)
    return "not reached" if r is None else f"{size(row['traffic'][r - 1])} ({r})"


LAST5: dict[str, Column] = {"last five, %": lambda row: shown(row["accuracy_last5"])}
FINAL: dict[str, Column] = {"final, %": lambda row: shown(row["accuracy_final"])}
BYTES: dict[str, Column] = {"up / down": lambda row: f"{size(training_bytes(row, 'up'))} / {size(training_bytes(row, 'down'))}"}
COST: dict[str, Column] = {"client multiply-adds": cost}
MEMORY: dict[str, Column] = {
    "peak at client / server": lambda row: " / ".join(
        size(row["peak_memory_bytes"].get(side, 0)) for side in ("client", "server")
    )
}
TABLES: dict[str, tuple[str, str, dict[str, Column]]] = {
    "modalities": ("Other modalities", "Two clients; the same networks cut after their first block.", LAST5 | FINAL | BYTES),
    "decoupled": (
        "Decoupled split learning on ResNet-110",
        "As its paper measures it, at 10,000 images and 6 rounds.",
        LAST5 | FINAL | BYTES | COST | MEMORY,
    ),
    "choices": (
        "Heads at the cut, chosen on held-out training images",
        "ResNet-20, shallow cut; accuracies are of 5,000 training images that were held out.",
        LAST5 | FINAL | COST | BYTES,
    ),
    "authors": (
        "What the authors' code does beyond its text",
        "ResNet-110, lr 0.001, one thing at a time.",
        LAST5 | FINAL | COST | MEMORY,
    ),
    "asynchronous": ("Thresholds over models and clients", "", LAST5 | FINAL | BYTES),
    "budget": (
        "Bytes until an accuracy",
        "Three clients, ResNet-18 at a quarter of its width; all bytes of training until the mean of three rounds reaches an accuracy.",
        LAST5 | {f"until {100 * level:.0f} %": partial(until, level) for level in importlib.import_module("budget").LEVELS},
    ),
    "parity": (
        "The target: decoupled against conventional",
        "ResNet-20 on all images of CIFAR-10.",
        LAST5 | FINAL | BYTES | COST,
    ),
}


SLPERF = (
    "Vanilla, U-shaped and SplitFed on graphs (GIN with five clients, two where classes are disjoint; 60 rounds of Adam, lr 0.01 falling "
    "at 30, 60 and 80 %) and on images whose classes are disjoint; images under IID and Dirichlet shares are in the section on every "
    "scheme. Mean of the last five test accuracies; in brackets the rounds until the mean of three evaluations reaches a fixed target "
    "(-: never) and until it is within half a point of the best one; the line of the row. Bytes and seconds, on one core in one process, "
    "are those of the first column. Test sets of graphs are small: one graph of MUTAG is 5 points. Targets: "
)


def listed(name: str, found: Sequence[Row], columns: dict[str, Column]) -> str:
    """Return a line for each cell: its labels, a value for each seed in every column, and the lines of its rows."""
    cells = importlib.import_module(name).cells()
    heads = [*cells[0].labels, *columns, "rows"]
    lines, missing = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"], []
    for cell in cells:
        mine = [(i, row) for i, row in enumerate(found, 1) if all(row.get(k) == v for k, v in cell.labels.items())]
        labels = " | ".join(str(value) for value in cell.labels.values())
        if not mine:
            missing.append(str(cell))
            continue
        done = [row for _, row in mine if "failed" not in row]
        values = [" ".join(dict.fromkeys(column(row) for row in done)) for column in columns.values()]
        if not done:
            values = [mine[-1][1]["failed"].partition(";")[0], *[""] * (len(columns) - 1)]
        lines.append(f"| {labels} | {' | '.join(values)} | {', '.join(f'L{i}' for i, _ in mine)} |")
    told = "\n".join(lines) if len(lines) > 2 else ""
    if missing:
        rest = f" ({'; '.join(missing)})" if len(missing) <= MISSING else ""
        told += f"\n\nNot run: {len(missing)} of {len(cells)} cells{rest}; `python benchmarks/{name}.py` runs them."
    return told.strip()


def pivoted(name: str, found: Sequence[Row], across: str) -> str:
    """Return a line for each task and scheme, with the last five accuracies and the line of the row under every partition."""
    cells = importlib.import_module(name).cells()
    columns = list(dict.fromkeys(cell.labels[across] for cell in cells))
    others = [label for label in cells[0].labels if label != across]
    newest = {tuple(row.get(k) for k in (*others, across)): (i, row) for i, row in enumerate(found, 1)}
    wanted = {tuple(cell.labels[k] for k in (*others, across)) for cell in cells}
    heads = [*others, *(f"{column}, %" for column in columns), "up / down", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for line in dict.fromkeys(key[:-1] for key in (tuple(cell.labels[k] for k in (*others, across)) for cell in cells)):
        there = {column: newest[*line, column] for column in columns if (*line, column) in newest}
        if not there:
            continue
        values = [
            _cell(*there[column]) if column in there else "not run" if (*line, column) in wanted else "" for column in columns
        ]
        row = next((row for _, row in there.values() if "failed" not in row), None)
        costs = f"{BYTES['up / down'](row)} | {row['seconds_total']:.0f}" if row else " | "
        lines.append(f"| {' | '.join(line)} | {' | '.join(values)} | {costs} |")
    absent = len(wanted - set(newest))
    told = "\n".join(lines) if len(lines) > 2 else ""
    rest = f"Not run: {absent} of {len(wanted)} cells; `python benchmarks/{name}.py` runs them." if absent else ""
    return f"{told}\n\n{rest}".strip()


def _cell(number: int, row: Row) -> str:
    if "failed" in row:
        return f"failed L{number}"
    rounds = f"{reached(row['curve'], TARGETS[row['task']]) or '-'}, {plateau(row['curve'])}"
    return f"{shown(row['accuracy_last5'])} ({rounds}) L{number}"


def clients(found: Sequence[Row]) -> str:
    """Return seconds a round and the server's memory by transport, scheme and number of clients."""
    newest = {(row["transport"], row["scheme"], row["clients"]): row for row in found}
    numbers = sorted({n for _, _, n in newest})
    lines = ["| transport | scheme | " + " | ".join(f"{n} clients" for n in numbers) + " |", "|---" * (2 + len(numbers)) + "|"]
    for transport, scheme in dict.fromkeys((t, s) for t, s, _ in newest):
        rows = [newest.get((transport, scheme, n)) for n in numbers]
        values = [f"{row['seconds']:.1f} s, {size(row['server_bytes'])}" if row else "not run" for row in rows]
        lines.append(f"| {transport} | {scheme} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def larger(found: Sequence[Row]) -> str:
    """Return what an epoch of ImageNet costs at each cut."""
    lines = ["| cut | method | up / down an epoch | peak at client / server, batch | s a batch here |", "|---" * 5 + "|"]
    for row in {(row["cut"], row["what"]): row for row in found}.values():
        peak = " / ".join(size(row["peak_memory_bytes"].get(side, 0)) for side in ("client", "server"))
        sent = " / ".join(size(row["epoch_bytes"].get(way, 0)) for way in ("up", "down"))
        lines.append(
            f"| {row['cut']} | {row['what']} | {sent} | {peak}, {row['batch_size']} | {row['seconds_per_batch']:.1f} |"
        )
    return "\n".join(lines)


OTHERS: dict[str, tuple[str, str, Callable[[Sequence[Row]], str]]] = {
    "clients": (
        "What more clients cost",
        "2,000 images in all, batches of 32: seconds a round and the peak of the server's memory. Under MPI all ranks share this "
        "machine's two cores.",
        clients,
    ),
    "larger": ("ResNet-50 at 224x224", "An epoch of ImageNet's 1,281,167 images, float32.", larger),
}


def sections(rows: Rows, provenance: Callable[[list[Row]], str]) -> str:
    """Return all sections; cells that were not run are told."""
    told = []
    found = rows("slperf")
    where = f"\n\n{provenance(found)}" if found else ""
    aims = ", ".join(f"{task} {100 * level:.0f} %" for task, level in TARGETS.items())
    told.append(f"## SLPerf's table\n\n{SLPERF}{aims}.\n\n{pivoted('slperf', found, 'partition')}{where}\n")
    for name, (title, text, columns) in TABLES.items():
        found = rows(name)
        where = f"\n\n{provenance(found)}" if found else ""
        told.append(f"## {title}\n\n{text}\n\n{listed(name, found, columns)}{where}\n")
    for name, (title, text, shape) in OTHERS.items():
        found = rows(name)
        body = f"{shape(found)}\n\n{provenance(found)}" if found else f"Not run: `python benchmarks/{name}.py`."
        told.append(f"## {title}\n\n{text}\n\n{body}\n")
    return "\n".join(told)
