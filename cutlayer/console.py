"""What the command line shows: progress, tables, where things were written, and what went wrong."""

import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .errors import Advice, BadInput, RunFailed, shortage
from .estimate import Estimate
from .integrity import check_trained
from .printable import printable
from .recipes.schemes import Scheme
from .report import Run, read, rows

console = Console(markup=False, emoji=False)  # a path or a name may have brackets and colons
WRONG, FAILED, INTERRUPTED, TERMINATED = 2, 1, 130, 143
NARROW = 120  # below so many columns the terminal shows what matters most; the report has it all
LABEL = 20  # columns that a label has at least, if it needs them; longer ones are folded
LEFT_OUT = ("seeds", "last 5", "peak %", "multiply-adds")


@contextmanager
def advised() -> Iterator[None]:
    """Print advice as errors are printed, in a line, without where in the code it is from."""
    before = warnings.formatwarning

    def line(message: Any, category: type[Warning], *where: Any, **how: Any) -> str:
        return f"cutlayer: {message}\n" if issubclass(category, Advice) else before(message, category, *where, **how)

    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before


def trace(error: Exception) -> None:
    """Print where in the code an error is from, if CUTLAYER_DEBUG is set."""
    if os.environ.get("CUTLAYER_DEBUG"):
        traceback.print_exception(error)


def told(error: Exception) -> tuple[int, str] | None:
    """Return the exit code and the line for an error that has one; None for a defect of the program, whose traceback is wanted."""
    if isinstance(error, BadInput | RunFailed):
        return (WRONG if isinstance(error, BadInput) else FAILED), str(error)
    if (why := shortage(error)) is not None:
        return FAILED, why
    if isinstance(error, OSError):
        named = error.filename is not None
        return (WRONG, f"{str(error.filename)!r}: {error.strerror}; give another path") if named else (FAILED, str(error))
    return None


def progress_bar() -> Progress:
    """Return the bar under which runs are followed; each run is a line of it."""
    called, note = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}"))
    counted = (MofNCompleteColumn(), TextColumn("steps"), TimeRemainingColumn(), note)
    return Progress(called, BarColumn(bar_width=20), *counted, console=console)


def follow(bar: Progress, label: str) -> Callable[[int, int, dict[str, Any] | None], None]:
    """Return what a run tells its progress to."""
    line = bar.add_task(printable(label), total=None, note="")

    def advance(done: int, total: int, record: dict[str, Any] | None) -> None:
        bar.update(line, completed=done, total=total)
        if record is not None and "accuracy" in record:
            bar.update(line, note=f"round {record['round'] + 1}: {100 * record['accuracy']:.1f} %")

    return advance


def show_runs(runs: Sequence[Run]) -> None:
    """Print the comparison table of finished runs."""
    header, table_rows = rows(runs)
    lines = [[printable(text) for text in row] for row in table_rows]
    keep = [i for i, name in enumerate(header) if console.width >= NARROW or not any(word in name for word in LEFT_OUT)]
    widths = [max(map(len, [*name.split(), *texts])) for name, *texts in zip(header, *lines, strict=True)]
    widths[0] = min(widths[0], LABEL)
    while len(keep) > 2 and sum(widths[i] + 2 for i in keep) + 1 > console.width:
        keep.pop()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i in keep:
        if i == 0:
            table.add_column(header[i], overflow="fold", min_width=widths[i])
        else:
            table.add_column(header[i].replace(" ", "\n"), justify="right", no_wrap=True, min_width=widths[i])
    for line in lines:
        table.add_row(*(line[i] for i in keep))
    console.print(table)
    if hidden := len(header) - len(keep):
        console.print(f"{hidden} more column{'s are' if hidden > 1 else ' is'} in the report", highlight=False)


def show_failure(which: str, why: str) -> None:
    """Print which run failed, and why."""
    console.print(Text.assemble(("failed", "red"), f" {which}: {printable(why)}"))


def show_paths(paths: Mapping[str, Path]) -> None:
    """Print where things were written, each on a line that can be copied."""
    for what, path in paths.items():
        console.print(f"{what}: {printable(str(path), None)}", highlight=False, soft_wrap=True)


def show_audit(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what attacks found, a line for each figure, and the same without what they saw."""
    table = Table("attack", "figure", "found", "without", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, figures in found.items():
        if "closed" in figures:
            table.add_row(name, figures["closed"], "", "")
        for figure in (figure for figure in figures if f"{figure}_without" in figures):
            table.add_row(name, figure, *(f"{figures[figure + ending]:.3f}" for ending in ("", "_without")))
    console.print(table)


def show_estimate(title: str, cost: Estimate) -> None:
    """Print what a run would cost."""
    table = Table(title=printable(f"{title}: {cost.steps:,} steps"), show_header=False)
    for direction, roles in cost.payload.items():
        for role, nbytes in roles.items():
            table.add_row(f"bytes {direction}, {role}", f"{nbytes:,}")
    sections: dict[str, Mapping[str, int | None]] = {
        "peak bytes of memory (live tensors)": cost.peak_memory_bytes, "parameters": cost.parameters,
        "multiply-adds per sample": cost.macs_per_sample,
    }  # fmt: skip
    for what, figures in sections.items():
        for whose, number in figures.items():
            table.add_row(f"{what}, {whose}", "unknown" if number is None else f"{number:,}")
    console.print(table)
    if cost.inexact:
        console.print(f"bytes are an estimate here: {cost.inexact}")


def show_lists(tables: Mapping[str, Mapping[str, str]]) -> None:
    """Print tables of names, each with its line."""
    for title, lines in tables.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0), title_style="bold")
        for name, line in lines.items():
            table.add_row(name, line)
        console.print(table)


def show_schemes(schemes: Mapping[str, Scheme]) -> None:
    """Print for each scheme who sends what, who updates when, its paper, where that paper's code differs, and its fields."""
    for name, row in schemes.items():
        table = Table(title=name, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0), title_style="bold")
        table.add_column(no_wrap=True, min_width=8)
        table.add_row("sends", row.sends)
        table.add_row("updates", row.order)
        table.add_row("from", row.paper)
        if row.differs:
            table.add_row("code", row.differs)
        table.add_row(
            "fields", ", ".join(f"{field}={'none' if value is None else value}" for field, value in row.fields.items())
        )
        console.print(table)


def show_finished(folder: Path) -> None:
    """Print a finished run's figures, and where they lie."""
    check_trained(folder)
    show_runs([read(folder)])
    show_paths({"report": folder / "report.html", "figures as JSON": folder / "summary.json", "weights": folder / "weights"})
