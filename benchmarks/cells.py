"""The cells of a table: one run each, resumable, whose row is written when it is finished."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rows
from rich.console import Console

from cutlayer.compare import compare
from cutlayer.errors import BadInput
from cutlayer.recipes import load
from cutlayer.report import write


class Cell(NamedTuple):
    """What a row says of its run, a recipe by name, and fields over it; in the tiny profile only cells that are `tiny` run."""

    labels: Mapping[str, Any]
    base: str
    fields: Mapping[str, Any]
    tiny: bool = False

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.labels.values())


def parser(name: str, about: str | None, seeds: str = "0") -> argparse.ArgumentParser:
    """Return the arguments that all tables have."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument("--out", type=Path, default=Path("runs") / name, help="where runs are kept, to go on with")
    found.add_argument("--seeds", default=seeds)
    found.add_argument("--only", default="", help="run the cells whose labels match this regular expression")
    found.add_argument(
        "--max-minutes", type=float, help="stop at the next mark after so many minutes; the same command goes on"
    )
    found.add_argument("--data-dir")
    found.add_argument("--device", default="cpu")
    found.add_argument("--list", action="store_true", help="print the cells and which of them are done, and run nothing")
    found.add_argument("--tiny", action="store_true", help="seconds, a few cells on bundled data, to see that it works")
    return found


def done(name: str, cell: Cell, seed: int) -> bool:
    """Return whether results/<name>.jsonl has the cell's row."""
    return rows.written(name, **cell.labels, seed=seed)


def run(name: str, cells: Sequence[Cell], args: argparse.Namespace, tiny: Mapping[str, Any], title: str) -> None:
    """Run the cells that are not done, seed by seed, cheapest first as they are listed, and write their rows and a report.

    A row has the labels, the accuracy of every evaluated round as `curve`, `states` where a method has any, and the summary.
    """
    console, finished, chosen = Console(), [], re.compile(args.only)
    for seed in [0] if args.tiny else [int(s) for s in args.seeds.split(",")]:
        for cell in cells:
            if (args.tiny and not cell.tiny) or not chosen.search(str(cell)):
                continue
            if args.list or (not args.tiny and done(name, cell, seed)):
                console.print(f"{'done' if done(name, cell, seed) else 'not run'}: seed {seed}, {cell}")
                continue
            fields = {**cell.fields, "seed": seed, "device": args.device, **({"num_threads": 1, **tiny} if args.tiny else {})}
            recipe = load(cell.base, **fields, data_dir=None if args.tiny else args.data_dir)
            failures: list[str] = []
            try:
                found, complete = compare(
                    [recipe],
                    args.out,
                    max_minutes=args.max_minutes,
                    failed=lambda r, e, failures=failures: failures.append(str(e)),
                )
            except BadInput as error:  # shares that cannot be had, for instance
                found, complete = [], False
                failures.append(str(error))
            for failure in failures:
                console.print(f"failed: seed {seed}, {cell}: {failure}")
                if not args.tiny:
                    rows.write(name, {**cell.labels, "seed": seed, "failed": failure, "recipe": recipe.flat()})
            for each in found:
                s = each.summary
                finished.append(each._replace(label=str(cell)))
                console.print(f"seed {seed}, {cell}: last five {100 * s['accuracy_last5']:.2f} %, {s['seconds_total']:.0f} s")
                states = "".join("ABC"[int(r["state"])] for r in each.records if "state" in r)
                row = {
                    **cell.labels,
                    "curve": [r.get("accuracy") for r in each.records],
                    **({"states": states} if states else {}),
                    **s,
                }
                if not args.tiny:
                    rows.write(name, row)
            if not complete and not failures:
                console.print(f"stopped in {cell}; the same command goes on")
                return
    if finished:
        console.print(f"report: {write(finished, args.out / 'report.html', title)}")


def targets(curve: Sequence[float | None], levels: Sequence[float], window: int = 3) -> dict[str, int | None]:
    """Return for each accuracy the first round whose mean over the newest `window` evaluations reaches it, None if none does."""
    seen = [(r, a) for r, a in enumerate(curve, 1) if a is not None]
    means = [(r, sum(a for _, a in seen[max(0, i - window + 1) : i + 1]) / min(window, i + 1)) for i, (r, _) in enumerate(seen)]
    return {json.dumps(level): next((r for r, mean in means if mean >= level), None) for level in levels}
