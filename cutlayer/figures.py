"""The figures of a report: inline SVG with real text, one colour per configuration, labels at the curves."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from .runs import Group, Run, human, series

# Okabe & Ito (2008) without its yellow, which a white page swallows; told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
PARTS = ("#332288", "#88CCEE", "#44AA99", "#DDCC77", "#CC6677", "#AA4499", "#999933", "#882255")  # Tol, muted
DASHES = ("-", "-.", ":")
GREY, INK = "#c9ccd1", "#3b4048"
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "cutlayer", "text.parse_math": False, "font.size": 8.5,
    "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#8a9099", "axes.linewidth": 0.8,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "xtick.major.width": 0.8, "ytick.major.width": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e7e9ec", "grid.linewidth": 0.7,
    "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip
PHASES = ("client_forward", "client_backward", "server_forward", "server_backward", "codec", "wait")
POINTS = 150  # of a curve; more are not seen and make the page heavy


class Drawn(NamedTuple):
    """A figure of the page: what is seen, and its SVG."""

    title: str
    svg: str


Points = tuple[list[float], list[float]]


def colour(group: Group) -> str:
    """Return the colour of a configuration, the same in every figure and in the table."""
    return COLOURS[group.number % len(COLOURS)]


def draw(groups: Sequence[Group], metric: str) -> list[Drawn]:
    """Return every figure for which the records have data, in reading order."""
    percent = "accuracy" in metric
    unit, scale = (f"test {metric} (%)", 100.0) if percent else (metric, 1.0)
    name = f"Test {metric}" if percent else metric
    made: list[Drawn | None] = [
        _curves(groups, f"{name} against rounds", "round", unit, lambda r: _scaled(series(r, metric), scale)),
        _curves(groups, f"{name} against traffic", "payload up + down without evaluation (MB)", unit,
                lambda r: _by_traffic(r, metric, scale)),
        _stacks(groups, "Bytes by direction and role", "payload (MB), evaluation in grey", ("up", "down"), _roles, 1e6),
        *_peaks(groups),
        _stacks(groups, "Time by phase", "seconds in the steps of all rounds", ("",), _phases, 1.0),
        *_shares(groups),
        _curves(groups, "Training loss", "round", "mean loss of the round", lambda r: _scaled(series(r, "train_loss"))),
        _curves(groups, f"The auxiliary head's {metric} (dashed) beside the server's", "round", unit,
                lambda r: _scaled(series(r, metric), scale), lambda r: _scaled(series(r, f"auxiliary_{metric}"), scale)),
        _curves(groups, "Cosine of local and server gradient at the cut", "round", "gradient_cosine",
                lambda r: _scaled(series(r, "gradient_cosine")), line=0.0),
        _curves(groups, "Effective rank of the activations at the cut", "round", "effective_rank",
                lambda r: _scaled(series(r, "effective_rank"))),
        _curves(groups, "Norm of the activations at the cut", "round", "activation_norm (mean of a sample)",
                lambda r: _scaled(series(r, "activation_norm"))),
    ]  # fmt: skip
    return [figure for figure in made if figure is not None]


def _scaled(points: tuple[list[int], list[float]], scale: float = 1.0) -> Points:
    kept = [(float(x), scale * y) for x, y in zip(*points, strict=True) if y - y == 0]  # only finite numbers can be drawn
    return [x for x, _ in kept], [y for _, y in kept]


def _by_traffic(run: Run, metric: str, scale: float) -> Points:
    rows = [r for r in run.records if isinstance(r.get(metric), int | float) and r[metric] - r[metric] == 0]
    sums = [sum(n for table in r.get("bytes", {}).values() for role, n in table.items() if role != "evaluation") for r in rows]
    return [n / 1e6 for n in sums], [scale * r[metric] for r in rows]


def _roles(run: Run, direction: str) -> dict[str, float]:
    table = (run.summary.get("bytes") or {}).get(direction) or {}
    return {role: n["payload"] for role, n in table.items() if n["payload"]}


def _peaks(groups: Sequence[Group]) -> Iterator[Drawn | None]:
    """Yield bars of peak memory, one figure for each kind of measurement."""
    kinds = dict.fromkeys(run.memory_figure for group in groups for run in group.runs)
    for kind in kinds:
        alike = [group._replace(runs=[run for run in group.runs if run.memory_figure == kind]) for group in groups]
        title = "Peak memory by side" + (f" ({kind})" if len(kinds) > 1 else "")
        label = f"{kind}, peak on one batch per round (MB)"
        yield _stacks([group for group in alike if group.runs], title, label, ("client", "server"), _peak, 1e6)


def _peak(run: Run, side: str) -> dict[str, float]:
    value = (run.summary.get("peak_memory_bytes") or {}).get(side)
    return {"": value} if value else {}


def _phases(run: Run, _: str) -> dict[str, float]:
    seconds = run.summary.get("seconds") or {}
    # in one process the server works while its clients wait, so its seconds are in theirs already
    shown = [name for name in PHASES if name != "wait" or run.recipe.get("transport", "inprocess") != "inprocess"]
    return {name.replace("_", " "): seconds[name] for name in shown if seconds.get(name)}


def _canvas(height: float = 2.9) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(5.2, height), layout="constrained")
    return canvas, canvas.subplots()


def _svg(canvas: Canvas, title: str) -> str:
    """Return the figure as an element of an HTML page: no prolog, no names that meet those of another figure."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    key = "f" + re.sub(r"\W", "", title).lower() + "-"
    text = re.sub(r'\bid="', f'id="{key}', text)
    text = re.sub(r'href="#', f'href="#{key}', text)
    text = text.replace("url(#", f"url(#{key}")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif", text)
    text = re.sub(r"(\d+\.\d{2})\d+", r"\1", text)
    opening = rf'<svg class="figure" role="img" \1 aria-label="{escape(title)}">'
    return re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', opening, text, count=1)


def _thin(points: Points) -> Points:
    step = -(-len(points[0]) // POINTS) or 1
    kept = sorted({*range(0, len(points[0]), step), len(points[0]) - 1})
    return [points[0][i] for i in kept], [points[1][i] for i in kept]


def _average(curves: Sequence[Points]) -> Points:
    count = min(len(curve[0]) for curve in curves)
    axes = [[sum(curve[i][k] for curve in curves) / len(curves) for k in range(count)] for i in (0, 1)]
    return axes[0], axes[1]


def _curves(
    groups: Sequence[Group], title: str, xlabel: str, ylabel: str, *of: Callable[[Run], Points], line: float | None = None
) -> Drawn | None:
    """One line per configuration, the mean over its seeds, with the seeds thin behind it; `of[1:]` are drawn dashed."""
    drawn = [(group, [[c for run in group.runs if (c := curve(run))[0]] for curve in of]) for group in groups]
    drawn = [(group, curves) for group, curves in drawn if all(curves)]
    if not drawn:
        return None
    with matplotlib.rc_context(STYLE):
        canvas, axes = _canvas()
        ends = []
        for group, curves in drawn:
            for seeds, dash in zip(curves, (DASHES[group.number // len(COLOURS) % len(DASHES)], "--"), strict=False):
                for points in seeds if len(seeds) > 1 else []:
                    axes.plot(*_thin(points), color=colour(group), alpha=0.35, lw=0.7, ls=dash)
                mean = _thin(_average(seeds))
                marker = "o" if len(mean[0]) <= 12 else None
                axes.plot(*mean, color=colour(group), lw=1.9 if dash != "--" else 1.3, ls=dash, marker=marker, ms=3)
            mean = _average(curves[0])
            ends.append((mean[0][-1], mean[1][-1], group))
        if line is not None:
            axes.axhline(line, color="#8a9099", lw=0.9)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=xlabel == "round"))
        axes.xaxis.set_major_formatter(_thousands)
        if xlabel != "round":
            axes.set_xlim(left=0)  # costs are compared by length
        _label(axes, ends)
        svg = _svg(canvas, title)
    return Drawn(title, svg)


def _label(axes: Axes, ends: list[tuple[float, float, Group]]) -> None:
    """Write each configuration's name at the end of its curve, moved apart where they would meet."""
    low, high = axes.get_ylim()
    points = 160 / (high - low)  # the axes are about this many points high
    ends = sorted((end for end in ends if end[2].letter), key=lambda end: end[1])
    places = [y * points for _, y, _ in ends]
    for _ in range(200):
        for i in range(len(places) - 1):
            push = max(0.0, (11 - places[i + 1] + places[i]) / 2)
            places[i], places[i + 1] = places[i] - push, places[i + 1] + push
    for place, (x, y, group) in zip(places, ends, strict=True):
        axes.annotate(
            group.short, (x, y), (7, place - y * points), textcoords="offset points", color=colour(group), fontweight="bold",
            va="center", annotation_clip=False, bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.8},
        )  # fmt: skip


def _thousands(value: float, _: Any = None) -> str:
    return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.0f}"


def _stacks(
    groups: Sequence[Group],
    title: str,
    xlabel: str,
    halves: Sequence[str],
    of: Callable[[Run, str], dict[str, float]],
    unit: float,
) -> Drawn | None:
    """Bars per configuration and half (up, down), means over the seeds, stacked by name with the total at the end."""
    bars = []
    for row, group in enumerate(groups):
        for half, word in enumerate(halves):
            tables = [of(run, word) for run in group.runs]
            names = dict.fromkeys(name for table in tables for name in table)
            means = {name: sum(table.get(name, 0) for table in tables) / len(tables) for name in names}
            bars.append((row * (len(halves) + 0.45) + half, f"{group.short} {word}".strip(), group, means))
    names = dict.fromkeys(name for *_, means in bars for name in means)
    if not names:
        return None
    fill = {name: GREY if name in ("evaluation", "wait") else PARTS[i % len(PARTS)] for i, name in enumerate(names)}
    with matplotlib.rc_context(STYLE):
        canvas, axes = _canvas(max(1.7, 1.0 + 0.27 * len(bars)))
        for y, _, group, means in bars:
            left = 0.0
            for name, value in means.items():
                look: Any = {"color": fill[name]} if name else {"color": colour(group)}
                axes.barh(y, value / unit, 0.8, left, edgecolor="white", lw=0.5, **look)
                left += value / unit
            text = human(left * unit) if unit == 1e6 else f"{left:,.1f} s"
            axes.annotate(text, (left, y), (4, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks([y for y, *_ in bars], [word for _, word, *_ in bars])
        for text_of, (_, _, group, _) in zip(axes.get_yticklabels(), bars, strict=True):
            text_of.set(color=colour(group) if group.letter else INK, fontweight="bold" if group.letter else "normal")
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set(xlabel=xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(_thousands)
        if any(names):
            handles = [Patch(color=fill[name], label=name) for name in names]
            count = len(names) if len(names) <= 4 else 3
            canvas.legend(handles=handles, loc="outside upper left", ncols=count, handlelength=1, columnspacing=1.2)
        svg = _svg(canvas, title)
    return Drawn(title, svg)


def _shares(groups: Sequence[Group]) -> list[Drawn]:
    """A heat map of samples by client and class, once for every different partition of several clients."""
    seen: dict[str, tuple[list[list[int]], list[str]]] = {}
    for group in groups:
        for run in group.runs:
            counts = run.summary.get("class_counts") or []
            if len(counts) > 1 and counts[0]:
                seen.setdefault(str(counts), (counts, []))[1].append(f"{group.letter} seed {run.recipe.get('seed', 0)}".strip())
    made = []
    for counts, names in list(seen.values())[:4]:
        title = "Training samples by client and class"
        if len(seen) > 1:
            title += " of " + ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        classes, top = len(counts[0]), max(map(max, counts))
        few = len(counts) * classes <= 120
        with matplotlib.rc_context({**STYLE, "axes.grid": False}):
            canvas, axes = _canvas(min(5.0, max(1.7, 1.0 + 0.26 * len(counts))))
            # a picture instead of one path per field where there are many
            mesh = axes.pcolormesh(
                counts, cmap="Blues", vmin=0, edgecolors="white", lw=0.5, rasterized=len(counts) * classes > 600
            )
            for k, row in enumerate(counts if few else []):
                for c, n in enumerate(row):
                    ink = "white" if n > 0.55 * top else INK
                    axes.text(c + 0.5, k + 0.5, f"{n:,}", ha="center", va="center", fontsize=7, color=ink)
            axes.set(xlabel="class", ylabel="client")
            for axis, count in ((axes.xaxis, classes), (axes.yaxis, len(counts))):
                ticks = range(0, count, -(-count // 20))
                axis.set_ticks([t + 0.5 for t in ticks], [str(t) for t in ticks])
            axes.invert_yaxis()
            axes.tick_params(length=0)
            if not few:
                canvas.colorbar(mesh, ax=axes, pad=0.02, aspect=12, label="samples")
            svg = _svg(canvas, title)
        made.append(Drawn(title, svg))
    return made
