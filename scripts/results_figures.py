"""Draw the figures of docs/results.md from the rows of benchmarks/results into docs/figures; a figure without rows is left out."""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from curve_figures import authors, curves, disjoint
from matplotlib.figure import Figure
from result_rows import client_share, finished, on_gpu

# isort: split
from cells import of  # where they are is known from result_rows on
from choices import REBUILT
from columns import points as points_of, saved
from result_forms import paired
from rows import read
from slperf import PERIODS

from cutlayer.errors import BadInput
from cutlayer.runs import interval

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
FLAT = ("target", "frontier", "disjoint", "authors", "asynchronous", "curves-slice")
COLOURS = {"shallow": "tab:blue", "middle": "tab:orange", "deep": "tab:green"}
THRESHOLDS = {"threshold 0.05": "o", "threshold 0.1": "s", "threshold 0.2": "^"}


def target(figure: Figure) -> bool:
    """By how many points decoupled training differs from conventional, a line for each length, cut and head; longest first."""
    ax = figure.subplots()
    found = read("parity")
    lines = [(cell.labels, pairs) for cell in of("parity")["small"] if (pairs := paired(cell, found))]
    lines.sort(key=lambda line: (-line[0]["rounds"], list(COLOURS).index(line[0]["cut"])))
    for y, (labels, pairs) in enumerate(lines):
        colour = COLOURS[labels["cut"]]
        for row, base in pairs:
            ax.plot(
                *points_of([(row, base)], "accuracy_final"), y, "o", mfc="none" if on_gpu(row) else colour, color=colour, ms=4
            )
        seeds = points_of(pairs, "accuracy_final")
        if len(seeds) > 2:  # of two an interval is wider than the figure
            middle, half = interval(seeds)
            ax.errorbar(middle, y, xerr=half, fmt="|", ms=12, capsize=4, color=colour)
    ax.axvline(0, color="grey", lw=0.8)
    names = [
        f"{own['rounds']} rounds, {own['cut']}, {own['what'].replace(REBUILT, '')} ({client_share(pairs[0][0]):.2f})"
        for own, pairs in lines
    ]
    ax.set_yticks(range(len(lines)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="points from conventional training, last round")
    figure.suptitle(
        "What sending nothing back costs: ResNet-20 on all of CIFAR-10, a point for each seed\n"
        "(bars: 95 % where there are three; in brackets the client's multiply-adds, conventional 1)",
        fontsize=10,
    )
    ax.plot([], [], "ko", ms=4, label="on a processor")
    ax.plot([], [], "ko", ms=4, mfc="none", label="on a GPU")
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)
    return bool(lines)


def frontier(figure: Figure) -> bool:
    """Accuracy against what the client computes, a point for each head."""
    ax = figure.subplots()
    found = [row for row in finished("heads") if row["accuracy_last5"] > 0.2]
    for name in dict.fromkeys(row["configuration"] for row in found):
        mine = [row for row in found if row["configuration"] == name]
        x = client_share(mine[0])
        y = [100 * row["accuracy_last5"] for row in mine]
        ax.errorbar(x, mean(y), [[mean(y) - min(y)], [max(y) - mean(y)]], fmt="o", capsize=3, label=name)
    ax.set(xlabel="the client's multiply-adds, a conventional client's being 1", ylabel="mean of the last five accuracies, %")
    ax.set_title("What a head at the cut buys (ResNet-20, shallow cut; lines span three seeds; above 20 %)", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncols=3)
    return bool(found)


def choices(figure: Figure) -> bool:
    """Accuracy on held-out training images after the last round, a line for each head, cheapest at the shallow cut first."""
    ax = figure.subplots()
    found = finished("choices")
    rows = [(row, row["what"].replace(REBUILT, ""), REBUILT in row["what"]) for row in found if "floor" not in row["what"]]
    costs: dict[str, float] = {}
    for share, name in ((client_share(row), name) for row, name, _ in rows if row["cut"] == "shallow"):
        costs[name] = min(share, costs.get(name, share))
    heads = sorted(costs, key=costs.__getitem__)
    if not heads:
        return False
    for cut, colour in COLOURS.items():
        for rebuilt, marker in ((True, "o"), (False, "x")):
            mine = [
                (100 * row["accuracy_final"], heads.index(name))
                for row, name, r in rows
                if (row["cut"], r) == (cut, rebuilt) and name in costs
            ]
            label = f"{cut}, with{'' if rebuilt else 'out'} reconstruction"
            if mine:
                ax.plot(*zip(*mine, strict=True), marker, color=colour, label=label)
    for row in (row for row in found if row["cut"] == "all"):
        p = row["accuracy_final"]
        error = 1.96 * math.sqrt(p * (1 - p) / row["recipe"]["num_held_out"])
        ax.axvspan(
            100 * (p - error),
            100 * (p + error),
            color="grey",
            alpha=0.2,
            lw=0,
            label="conventional, and what 5,000 images tell",
        )
    ax.set_yticks(range(len(heads)), [f"{name} ({costs[name]:.2f})" for name in heads], fontsize=8)
    ax.set(xlabel="accuracy on 5,000 held-out training images, %, last round")
    figure.suptitle("Heads at the cut and the client's multiply-adds, a conventional client's being 1 (one seed)", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncols=3)
    return True


def schemes(figure: Figure) -> bool:
    """Accuracy against simulated time, a point for each scheme; names of points that lie together share a line."""
    found = [row for row in finished("schemes") if row.get("simulated")]
    panels = figure.subplots(2, 1, sharex=True)
    for ax, partition in zip(panels, ("iid", "dirichlet"), strict=True):
        newest = {row["scheme"]: row for row in found if row["partition"] == partition}
        groups: list[tuple[float, float, list[str]]] = []
        for name in sorted(newest, key=lambda name: -newest[name]["accuracy_last5"]):
            row = newest[name]
            x, y = row["simulated"]["seconds"] / 60, 100 * row["accuracy_last5"]
            near = next((names for gx, gy, names in groups if abs(math.log(x / gx)) < 0.15 and abs(y - gy) < 3.8), None)
            if near is None:
                groups.append((x, y, [name]))
            else:
                near.append(name)
            ax.plot(x, y, "o", color="tab:blue")
        for x, y, names in groups:
            side = "top" if len(names) > 1 else "baseline"
            ax.annotate("\n".join(names), (x, y), (5, 4), textcoords="offset points", fontsize=7, va=side)
        ax.set(xscale="log", ylabel=f"last five, %, {partition}", xlim=(1.5, 150))
        ax.margins(y=0.12)
    panels[1].set(xlabel="simulated minutes (20/50 Mbit/s, 30 ms)")
    panels[1].set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    panels[1].minorticks_off()
    figure.suptitle(
        "Every scheme: five clients, 12 rounds of 10,000 images (names of close points: the highest first)", fontsize=10
    )
    return bool(found)


def periods(figure: Figure) -> bool:
    """Accuracy of the last round, and client drift, against how often clients are averaged."""
    above, below = figure.subplots(2, 1, sharex=True)
    found = {
        (row["partition"], row["what"].partition(" every ")[2]): row for row in finished("slperf") if " every " in row["what"]
    }
    for partition, norm in (("iid", ""), ("dirichlet", ""), ("dirichlet", ", group norm")):
        there = [(i, found[partition, p + norm]) for i, p in enumerate(PERIODS) if (partition, p + norm) in found]
        above.plot([i for i, _ in there], [100 * row["accuracy_final"] for _, row in there], "o-", label=partition + norm)
        drifts = [(i, row["client_drift"]) for i, row in there if "client_drift" in row]
        below.plot([i for i, _ in drifts], [drift for _, drift in drifts], "o-", label=partition + norm)
    above.set(ylabel="accuracy after the last round, %")
    above.set_title("How often SplitFed V1 has to average (five clients, 10 rounds)", fontsize=10)
    above.legend(fontsize=8)
    below.set_xticks(range(len(PERIODS)), PERIODS)
    below.set(xlabel="clients and server copies are averaged every", ylabel="client drift at an average", yscale="log")
    return bool(found)


def clients(figure: Figure) -> bool:
    """Seconds for each client of a round under MPI, and the server's memory, against the number of clients."""
    above, below = figure.subplots(2, 1, sharex=True)
    found = {(row["transport"], row["scheme"], row["clients"]): row for row in finished("clients")}
    schemes, numbers = list(dict.fromkeys(s for _, s, _ in found)), sorted({n for _, _, n in found})
    kept: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for scheme in schemes:
        there = [(n, found["mpi", scheme, n]) for n in numbers if ("mpi", scheme, n) in found]
        above.plot([n for n, _ in there], [row["seconds"] / n for n, row in there], "o-", label=scheme)
        at = [n for n in numbers if ("inprocess", scheme, n) in found]
        peaks = tuple((n, int(found["inprocess", scheme, n]["server_bytes"] / 1e6)) for n in at)
        kept.setdefault(peaks, []).append(scheme)
    for peaks, names in kept.items():  # schemes of the same memory are one line
        if peaks:
            below.plot(*zip(*peaks, strict=True), "o-", color="black")
            below.annotate(", ".join(names), peaks[-1], (-9, 5), textcoords="offset points", ha="right", size=7)
    above.set(xscale="log", ylim=(0, None), ylabel="seconds a round for each client")
    above.set_title("What more clients cost, each with 256 images (MPI, all on two cores)", fontsize=10)
    below.set(xscale="log", yscale="log", xlabel="clients", ylabel="peak at the server, MB")
    below.set_yticks([30, 100, 300], ["30", "100", "300"])
    below.set_xticks(numbers, map(str, numbers))
    below.minorticks_off()
    if found:
        above.legend(fontsize=7, ncols=2)
    return bool(found)


def asynchronous(figure: Figure) -> bool:
    """What a threshold costs in accuracy against how many times fewer bytes cross, a colour for each number of clients."""
    found = finished("asynchronous")
    models = list(dict.fromkeys(row["model"] for row in found))
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0] if found else []
    for ax, model in zip(panels, models, strict=True):
        ax.axhline(0, color="grey", lw=0.8)
        ax.axhline(-0.5, color="grey", lw=0.8, ls=":")
        for n, colour in ((1, "tab:blue"), (5, "tab:orange"), (10, "tab:green")):
            rows = {row["what"]: row for row in found if (row["model"], row["clients"]) == (model, n)}
            base = rows.pop("conventional", None)
            points = {what: (float(saved([(row, base)])), points_of([(row, base)])[0]) for what, row in rows.items() if base}
            if points:
                ax.plot(*zip(*sorted(points.values()), strict=True), color=colour, label=f"{n} client{'s' if n > 1 else ''}")
            for what, point in points.items():
                ax.plot(*point, THRESHOLDS[what], mfc="none", color=colour)
        ax.margins(x=0.1, y=0.1)
        ax.set_title(model, fontsize=9)
    if found:
        panels[len(panels) // 2].set_xlabel("times fewer bytes than float32")
        panels[0].set_ylabel("points from conventional, last five")
        for what, marker in THRESHOLDS.items():
            panels[0].plot([], [], marker, mfc="none", color="black", label=what)
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=6)
        figure.suptitle("Rare updates with 8-bit floats, one seed; dotted: half a point lost", fontsize=10)
    return bool(found)


def leakage(figure: Figure) -> bool:
    """How like the inputs are what a decoder makes of the activations, a bar for each run, cut after cut."""
    ax = figure.subplots()
    found = sorted(finished("leakage"), key=lambda row: list(COLOURS).index(row["cut"]))
    for y, row in enumerate(found):
        ax.barh(y, row["audit"]["ssim"], color=COLOURS[row["cut"]], height=0.7)
        ax.text(row["audit"]["ssim"] + 0.01, y, f"{row['audit']['psnr']:.1f} dB", va="center", fontsize=7)
    for row in found[:1]:
        ax.axvline(row["audit"]["ssim_without"], color="grey", ls=":", label="the mean image")
    names = [f"{row['cut']}, {row['what']} ({100 * row['accuracy_final']:.0f} %)" for row in found]
    ax.set_yticks(range(len(found)), names, fontsize=8)
    ax.invert_yaxis()
    ax.set(xlabel="structural similarity of rebuilt and own images, 1 is the same", xlim=(0, 1.1))
    figure.suptitle("What a server rebuilds from activations (in brackets the network's accuracy)", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center")
    return bool(found)


DRAWN: dict[str, Callable[[Figure], bool]] = {
    "target": target,
    "frontier": frontier,
    "choices": choices,
    "schemes": schemes,
    "periods": periods,
    "disjoint": disjoint,
    "clients": clients,
    "authors": authors,
    "asynchronous": asynchronous,
    "leakage": leakage,
    "curves-slice": partial(curves, recipe="strong", profile="slice"),
} | {f"curves-{recipe}": partial(curves, recipe=recipe) for recipe in ("text", "strong")}


def main() -> None:
    """Draw what has rows, the same bytes for the same rows."""
    FIGURES.mkdir(exist_ok=True)
    mpl.rcParams.update({"svg.hashsalt": "cutlayer", "axes.spines.top": False, "axes.spines.right": False})
    for name, draw in DRAWN.items():
        figure = Figure(figsize=(7, 4.5 if name in FLAT else 6.5), layout="constrained")
        if draw(figure):
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
        else:  # what is there is of other rows
            (FIGURES / f"{name}.svg").unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"results_figures.py: {error}")
