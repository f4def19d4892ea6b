"""Rows of results, and the figures of a row that several tables and drawings show."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))  # their cells, and what reads and writes rows

from rows import read

from cutlayer.recipes import recorded

Row = dict[str, Any]


def table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    first, *others = (f"| {' | '.join(map(str, row))} |" for row in (heads, *lines))
    return "\n".join([first, "|---" * len(heads) + "|", *others])


def newest(found: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], tuple[int, Row]]:
    """Return for the values of some fields the newest row that has them, and its line."""
    return {tuple(row[key] for key in keys): (i, row) for i, row in enumerate(found, 1)}


def finished(name: str) -> list[Row]:
    """Return the rows of runs that did not fail."""
    return [row for row in read(name) if "failed" not in row]


def on_gpu(row: Row) -> bool:
    """Return whether a run was computed on a GPU."""
    return str(row.get("recipe", {}).get("device", "cpu")) != "cpu"


def training_bytes(row: Row, way: str) -> int:
    """Return the payload bytes of training in a direction, up or down."""
    return sum(int(cell["payload"]) for role, cell in row["bytes"][way].items() if role != "evaluation")


def client_macs(row: Row) -> int:
    """Return a third of a sample's multiply-adds at the client, forward and backward: what a forward pass costs if all goes backward.

    A backward pass is two forward passes; of samples that do not go backward only the bottom's forward pass is computed.
    """
    share = row["recipe"].get("backward_share", 1.0)
    cost = {part: row["macs_per_sample"].get(part, 0) for part in ("bottom", "auxiliary", "decoder")}
    return round((1 + 2 * share) / 3 * cost["bottom"] + share * (cost["auxiliary"] + cost["decoder"]))


def client_share(row: Row) -> float | None:
    """Return those as a share of a conventional client's, None where there is no client's part."""
    bottom = row["macs_per_sample"].get("bottom", 0)
    return client_macs(row) / bottom if bottom else None


def provenance(name: str, found: Sequence[Row]) -> str:
    """Return in which file the rows are, and by what command, commits, seeds, machines and versions they were measured."""
    commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in found if "commit" in row))
    seeds = ", ".join(map(str, sorted({row["seed"] for row in found if "seed" in row})))
    versions = "; ".join(dict.fromkeys(f"torch {v['torch']}, Python {v['python']}" for v in (row["versions"] for row in found)))
    where = "; ".join(dict.fromkeys(_machine(row) for row in found if "machine" in row))
    return (
        f"`python benchmarks/{name}.py`, `benchmarks/results/{name}.jsonl`; commit {commits}; "
        f"{f'seed {seeds}; ' if seeds else ''}{where}; {versions}."
    )


def partition_versions(found: Sequence[Row]) -> str:
    """Return the sentence that names the partition version of every Dirichlet row by its line; empty without such rows."""
    lines: dict[int, list[int]] = {}
    for number, row in enumerate(found, 1):
        recipe = recorded(row.get("recipe", {}))
        if recipe.get("partition") == "dirichlet":
            lines.setdefault(recipe["partition_version"], []).append(number)
    each = "; ".join(f"{version} in {_ranges(lines[version])}" for version in sorted(lines))
    return f"Partition version of the Dirichlet rows: {each}." if lines else ""


def _ranges(lines: Sequence[int]) -> str:
    """Return sorted line numbers as ranges: L1 to L3, L7."""
    first = [i for i in lines if i - 1 not in lines]
    last = [i for i in lines if i + 1 not in lines]
    return ", ".join(f"L{a}" if a == b else f"L{a} to L{b}" for a, b in zip(first, last, strict=True))


def _machine(row: Row) -> str:
    """Return the processor or the GPU, and on how many threads each run was, where the row knows."""
    threads = row.get("num_threads") or row.get("recipe", {}).get("num_threads")
    where = row["machine"]["gpu"] if on_gpu(row) else row["machine"]["processor"]
    return where + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")
