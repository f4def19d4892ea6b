"""The cells of the comparison table: a figure of one run, or its mean over seeds, and the exact numbers behind it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .runs import MEMORY_FIGURE, Run, human, interval


class Cell(NamedTuple):
    """What a field of the table shows, and the exact number behind it."""

    text: str
    exact: str = ""


def figure_cell(runs: Sequence[Run], of: Callable[[Run], float | None], show: Callable[[float], str], exact: str) -> Cell:
    """Return a figure of one run, or the mean over seeds +- half the 95 % interval; `exact` formats the originals."""
    known = [(run.summary.get("seed", 0), value) for run in runs if (value := of(run)) is not None]
    values = [value for _, value in known]
    if not values:
        return Cell("-")
    if len(set(values)) == 1:
        every = f" in each of {len(values)} seeds" if len(values) > 1 else ""
        return Cell(show(values[0]), exact.format(values[0]) + every)
    mean, half = interval(values)
    return Cell(f"{show(mean)} ± {show(half)}", "; ".join(f"seed {seed}: {exact.format(value)}" for seed, value in known))


def peak_cell(runs: Sequence[Run], side: str, mixed: bool) -> Cell:
    """Return the peak memory of a side; its text names what was measured if the table is `mixed`.

    Seeds that measured another figure than live tensors are left out beside seeds that measured it.
    """
    figures = {run.memory_figure for run in runs}
    figure = MEMORY_FIGURE if MEMORY_FIGURE in figures else figures.pop()
    same = [run for run in runs if run.memory_figure == figure]
    cell = figure_cell(same, lambda run: (run.summary.get("peak_memory_bytes") or {}).get(side) or None, human, "{:,} bytes")
    if not cell.exact:
        return cell
    return Cell(f"{cell.text} ({figure})" if mixed else cell.text, f"{cell.exact}; {figure}")


def macs_cell(runs: Sequence[Run]) -> Cell:
    """Return the multiply-adds of a sample's forward pass at the client, or that they are unknown."""
    tables = [run.summary.get("macs_per_sample") or {} for run in runs]
    if any(count is None for counts in tables for name, count in counts.items() if name != "top"):
        return Cell("unknown")

    def client(run: Run) -> float | None:
        counts = run.summary.get("macs_per_sample") or {}
        return sum(n for name, n in counts.items() if name != "top") if counts else None

    return figure_cell(runs, client, lambda v: human(v, ""), "{:,} multiply-adds")
