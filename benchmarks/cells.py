"""The cells of a table: one run each, resumable, whose row is written when it is finished."""

import argparse
import importlib
import itertools
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import rows

from cutlayer.compare import compare, folder_of
from cutlayer.console import console, follow, progress_bar
from cutlayer.errors import BadInput, Busy, RunFailed, shortage
from cutlayer.recipes import Recipe, load
from cutlayer.report import Run, read, write

PRECISIONS = ("float32", "bfloat16")
TINY: dict[str, Any] = {
    "data": "digits", "num_train": 64, "num_test": 32, "model": "resnet8", "rounds": 1, "warmup_rounds": 0, "lr_schedule": "constant",
    "batch_size": 16, "num_threads": 1, "precision": "float32",
}  # fmt: skip


class Cell(NamedTuple):
    """What a row says of its run, a recipe by name, and fields over it; in the tiny profile only cells that are `tiny` run."""

    labels: Mapping[str, Any]
    base: str
    fields: Mapping[str, Any]
    tiny: bool = False

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.labels.values())


def of(name: str) -> dict[str, list[Cell]]:
    """Return the cells of a table by profile; a table without PROFILES has a small one alone."""
    table = importlib.import_module(name)
    return {profile: table.cells(profile) for profile in getattr(table, "PROFILES", ())} or {"small": table.cells()}


def parser(name: str, about: str | None, seeds: str = "0", profiles: Iterable[str] = ()) -> argparse.ArgumentParser:
    """Return the arguments that all tables have, and the profile of those that have several, the first by default."""
    found = argparse.ArgumentParser(description=about)
    found.add_argument(
        "--out",
        type=Path,
        help=f"where runs are kept, to go on with (default: runs/{name}, with --tiny runs/{name}-tiny, on a GPU runs/{name}-cuda)",
    )
    found.add_argument("--seeds", default=seeds)
    found.add_argument(
        "--only", default="", help="run the cells whose labels contain this, or match it as a regular expression"
    )
    found.add_argument(
        "--max-minutes", type=float, help="stop at the next mark after so many minutes in all; the same command goes on"
    )
    found.add_argument("--data-dir")
    found.add_argument("--device", default="cpu", help="of every run (default: cpu); rows tell it, and are compared within it")
    found.add_argument(
        "--num-threads",
        type=int,
        help="of every run; with 1, start the command once for each core: it takes the cells that nobody runs",
    )
    found.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of every run instead of the cell's, where a processor has no bfloat16; rows tell it, and are compared within it",
    )
    found.add_argument("--list", action="store_true", help="print the cells and which of them are done, and run nothing")
    if names := list(profiles):
        found.add_argument("--profile", choices=names, default=names[0])
    found.add_argument(
        "--tiny", action="store_true", help="seconds, a few cells on bundled data, one seed, no rows: to see that it works"
    )
    return found


def run(
    name: str, cells: Sequence[Cell], args: argparse.Namespace, title: str, tiny: Mapping[str, Any] = MappingProxyType({}),
    more: Callable[[Path], dict[str, Any]] = lambda folder: {},
) -> None:  # fmt: skip
    """Run the cells that are not done, seed by seed, in the order in which they are listed, and write their rows and a report.

    `tiny` are a table's own fields over those of the tiny profile, and `more` is what its rows say of a finished run's folder besides.
    A run that diverges has a row that says so; a cell whose input cannot be had, or that fails otherwise, is told and has none.
    """
    try:
        _table(name, cells, args, title, {**TINY, **tiny}, more)
    except BadInput as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from the last mark")
        sys.exit(130)


def _table(
    name: str, cells: Sequence[Cell], args: argparse.Namespace, title: str, tiny: Mapping[str, Any],
    more: Callable[[Path], dict[str, Any]],
) -> None:  # fmt: skip
    out = args.out or Path("runs") / "-".join([name, *["tiny"] * args.tiny, *[args.device] * (args.device != "cpu")])
    cells = [cell for cell in cells if cell.tiny or not args.tiny]
    chosen = choose(cells, args.only)
    if not chosen:
        where = " of the tiny profile; --tiny --list" if args.tiny else "; --list"
        raise BadInput(f"--only {args.only!r} matches no cell{where} prints them")
    if not all(re.fullmatch(r"\d+", seed.strip()) for seed in args.seeds.split(",")):
        raise BadInput(f"--seeds {args.seeds!r} are no numbers; give some like 0,1,2")
    seeds = [0] if args.tiny else dict.fromkeys(int(seed) for seed in args.seeds.split(","))
    deadline = None if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
    without = 0
    for seed, cell in itertools.product(seeds, chosen):
        recipe, what = recipe_of(cell, seed, args, tiny), f"seed {seed}, {cell}"
        there = [] if args.tiny else _precisions(name, recipe, {**cell.labels, "seed": seed})
        has = recipe.precision in there
        if args.list or has:
            console.print(f"{'done' if has else ', done in '.join(['not run', *there])}: {what}")
            continue
        left = None if deadline is None else max(0.0, (deadline - time.monotonic()) / 60)
        try:
            found, failure = _run(recipe, out, left, what)
        except Busy:
            console.print(f"left to another process: {what}")
            continue
        except BadInput as error:  # shares that cannot be had, for instance
            found, failure = None, error
        if found:
            console.print(
                f"{what}: last five {100 * found.summary['accuracy_last5']:.2f} %, {found.summary['seconds_total']:.0f} s"
            )
        elif failure:
            console.print(f"failed: {what}: {shortage(failure) or failure}")
        else:
            console.print(f"stopped in {cell}; the same command goes on")
            break
        if found or isinstance(failure, RunFailed):
            told = (
                _row(found) | more(folder_of(recipe, out))
                if found
                else {"seed": seed, "failed": str(failure), "recipe": recipe.flat()}
            )
            if not args.tiny:
                rows.write(name, {**cell.labels, **told})
        else:
            without += 1
    finished = [] if args.list else _finished(cells, seeds, args, tiny, out)
    if finished:
        console.print(f"report: {write(finished, out / 'report.html', title)}")
    if without:
        raise BadInput(f"{without} of {len(seeds) * len(chosen)} cells have no row; the same command tries them again")


def recipe_of(cell: Cell, seed: int, args: argparse.Namespace, tiny: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a cell as the arguments of a table have it run."""
    own = dict(tiny) if args.tiny else {"data_dir": args.data_dir}
    own |= {name: value for name in ("num_threads", "precision") if (value := getattr(args, name)) is not None}
    return load(cell.base, **{**cell.fields, "seed": seed, "device": args.device, **own})


def _precisions(name: str, recipe: Recipe, labels: Mapping[str, Any]) -> list[str]:
    """Return in which precisions a cell has rows."""
    return [p for p in PRECISIONS if rows.written(name, {**recipe.flat(), "precision": p}, **labels)]


def choose(cells: Sequence[Cell], only: str) -> list[Cell]:
    """Return the cells whose labels contain some words, or if none does, match them; raises BadInput if they are no expression."""
    if found := [cell for cell in cells if only in str(cell)]:
        return found
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise BadInput(f"--only {only!r} is in no cell, and no regular expression ({error}); --list prints them") from error
    return [cell for cell in cells if pattern.search(str(cell))]


def _finished(
    cells: Sequence[Cell], seeds: Iterable[int], args: argparse.Namespace, tiny: Mapping[str, Any], out: Path
) -> list[Run]:
    """Return the finished runs of all cells that lie in a folder, also those of other calls."""
    folders = {folder_of(recipe_of(cell, seed, args, tiny), out): cell for seed in seeds for cell in cells}
    return [read(folder)._replace(label=str(cell)) for folder, cell in folders.items() if (folder / "summary.json").exists()]


def _run(recipe: Recipe, out: Path, minutes: float | None, label: str) -> tuple[Run | None, Exception | None]:
    """Return the finished run, or why it failed; neither if there was no time for all of it."""
    failures: list[Exception] = []
    with progress_bar() as bar:
        found, _ = compare(
            [recipe], out, max_minutes=minutes, progress=lambda i, r: follow(bar, label),
            failed=lambda r, error: failures.append(error),
        )  # fmt: skip
    return next(iter(found), None), next(iter(failures), None)


def _row(run: Run) -> dict[str, Any]:
    """Return the summary, for every round its accuracy (None: not evaluated) and the bytes sent so far, and what a method adds."""
    states = "".join("ABC"[int(record["state"])] for record in run.records if "state" in record)
    curve = [record.get("accuracy") for record in run.records]
    traffic = [
        sum(n for roles in record["bytes"].values() for role, n in roles.items() if role != "evaluation")
        for record in run.records
    ]
    last = run.records[-1]
    exits = {f"{name}_final": last[name] for name in ("auxiliary_accuracy", "ensemble_accuracy") if name in last}
    drifts = [record["client_drift"] for record in run.records if "client_drift" in record]
    more = ({"states": states} if states else {}) | ({"client_drift": sum(drifts) / len(drifts)} if drifts else {})
    return {"curve": curve, "traffic": traffic, **more, **exits, **run.summary}


def means(curve: Sequence[float | None], window: int = 3) -> list[tuple[int, float]]:
    """Return for evaluated rounds, counted from 1, the mean of the newest `window` accuracies, from the first that has so many on.

    Of a curve with fewer it is the mean of all.
    """
    seen = [(r, a) for r, a in enumerate(curve, 1) if a is not None]
    window = min(window, len(seen))
    return [(r, sum(a for _, a in seen[i - window : i]) / window) for i, (r, _) in enumerate(seen, 1) if i >= window]


def reached(curve: Sequence[float | None], level: float) -> int | None:
    """Return the first round whose mean of three reaches an accuracy, None if none does."""
    return next((r for r, mean in means(curve) if mean >= level), None)


def plateau(curve: Sequence[float | None], within: float = 0.005) -> int:
    """Return the first round whose mean of three lies within half a point of the best one: rounds to convergence."""
    found = means(curve)
    best = max(mean for _, mean in found)
    return next(r for r, mean in found if best - mean <= within)
