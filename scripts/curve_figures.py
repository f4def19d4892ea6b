"""The figures of docs/results.md that show accuracy by round."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result_rows import Row, finished

HOLDS = (
    "vanilla, batches of 32",
    "splitfed_v1, 1 round, batches of 32",
    "splitfed_v1, 1 batch",
    "splitfed_v1, 5 batches",
    "splitfed_v1, 1 batch, equal shares",
    "splitfed_v1, 5 batches, equal shares, group norm",
    "splitfed_v1, 1 batch, equal shares, group norm",
    "splitfed_v1, 1 batch, equal shares, group norm, 36 rounds",
)
LOGGED = (82.99, 82.79)  # the authors' logs, conventional and decoupled: mean of the last five epochs, one client, deep cut
WHATS = ("conventional", "decoupled, shallow", "decoupled, middle", "decoupled, deep")


def disjoint(figure: Figure) -> bool:
    """Accuracy after every round where each client has two classes, a line for what was tried on the way to what holds."""
    ax = figure.subplots()
    newest = {row["what"]: row for row in finished("slperf") if (row["task"], row["partition"]) == ("cifar10", "classes")}
    for what in (what for what in HOLDS if what in newest):
        ax.plot(*zip(*((r, 100 * a) for r, a in enumerate(newest[what]["curve"], 1)), strict=True), label=what)
    ax.axhline(60, color="grey", lw=0.8, ls=":")
    ax.set(xlabel="round", ylabel="accuracy, %", ylim=(0, None))
    ax.set_title("Five clients of two classes each: what was tried, and what holds (CIFAR-10)", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncols=2)
    return any(what in newest for what in HOLDS)


def curves(figure: Figure, recipe: str, profile: str = "small") -> bool:
    """Accuracy of a profile after every round, at three cuts, a panel for each data set and number of clients."""
    found = [row for row in finished("decoupled") if (row["profile"], row["recipe_of"]) == (profile, recipe)]
    if not any(row["what"] == "conventional" for row in found):
        return False
    sets, numbers = (list(dict.fromkeys(row[key] for row in found)) for key in ("data", "clients"))
    panels = figure.subplots(len(sets), len(numbers), sharex=True, sharey="row", squeeze=False)
    lowest = {row["clients"]: row["data"] for row in sorted(found, key=lambda row: sets.index(row["data"]))}
    for along, data in zip(panels, sets, strict=True):
        for ax, n in zip(along, numbers, strict=True):
            mine = [row for row in found if (row["data"], row["clients"]) == (data, n)]
            if not mine:
                ax.set_axis_off()
                continue
            for row in sorted(mine, key=lambda row: WHATS.index(row["what"])):
                _curve(ax, row)
            ax.set_title(f"{data}, {n} client{'s' if n > 1 else ''}", fontsize=9)
            ax.tick_params(labelbottom=data == lowest[n])
            ax.set(xlabel="round" if data == lowest[n] else "", ylabel="accuracy, %" if n == numbers[0] else "")
    _legend(figure, ncols=4)
    return True


def _legend(figure: Figure, ncols: int) -> None:
    """Put one line of each name in any panel below all panels."""
    handles = {name: line for ax in figure.axes for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=7, loc="outside lower center", ncols=ncols)


def _curve(ax: Axes, row: Row, color: str | None = None) -> None:
    """Draw the accuracies of a run over whole rounds, the conventional one dashed and black."""
    seen = [(r, 100 * a) for r, a in enumerate(row["curve"], 1) if a is not None]
    style = {"ls": "--", "color": "black"} if row["what"] == "conventional" else {"color": color}
    ax.plot(*zip(*seen, strict=True), label=row["what"], **style)
    ax.xaxis.get_major_locator().set_params(integer=True)


def authors(figure: Figure) -> bool:
    """Accuracy after every round, a line for each thing that the authors' code does beyond its text, and what their own logs end at."""
    found = {name: [row for row in finished("authors") if row["profile"] == name] for name in ("small", "full")}
    lengths = {"small": "10,000 images, 6 rounds", "full": "50,000 images, 50 rounds"}
    profiles = [name for name, rows in found.items() if rows]
    whats = dict.fromkeys(row["what"] for rows in found.values() for row in rows if row["what"] != "conventional")
    colors = {what: f"C{i}" for i, what in enumerate(whats)}
    panels = figure.subplots(1, max(len(profiles), 1), squeeze=False).flat
    for ax, name in zip(panels, profiles, strict=False):
        for row in found[name]:
            _curve(ax, row, colors.get(row["what"]))
        ax.set(xlabel="round", ylabel="accuracy, %" if name == profiles[0] else "")
        ax.set_title(f"ResNet-110, {lengths[name]}", fontsize=9)
        if name == "full":
            for logged in LOGGED:
                ax.axhline(logged, color="grey", lw=0.8, ls=":", label="the authors' logs, last five")
    _legend(figure, ncols=3)
    return bool(profiles)
