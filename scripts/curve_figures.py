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
    handles = {name: line for ax in panels.flat for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=7, loc="outside lower center", ncols=4)
    return True


def _curve(ax: Axes, row: Row) -> None:
    """Draw the accuracies of a run over whole rounds, dashed where it is the conventional one."""
    seen = [(r, 100 * a) for r, a in enumerate(row["curve"], 1) if a is not None]
    ax.plot(*zip(*seen, strict=True), "k--" if row["what"] == "conventional" else "-", label=row["what"])
    ax.xaxis.get_major_locator().set_params(integer=True)


def authors(figure: Figure) -> bool:
    """Accuracy of the small profile after every round, a line for each thing that the authors' code does beyond its text."""
    ax = figure.subplots()
    found = {row["what"]: row for row in finished("authors") if row["profile"] == "small"}
    for row in found.values():
        _curve(ax, row)
    ax.set(xlabel="round", ylabel="accuracy, %")
    ax.set_title("What the authors' code does beyond its text (ResNet-110, 10,000 images)", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncols=3)
    return bool(found)
