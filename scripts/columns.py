"""What a table shows of the runs of a cell, one for each seed: each beside the conventional run of its seed, None where there is none."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean

from cells import reached
from result_rows import Row, client_macs, client_share, training_bytes

from cutlayer.runs import MEMORY_FIGURE, interval, memory_figure

Pair = tuple[Row, Row | None]
Column = Callable[[Sequence[Pair]], str]
CLIENT = ("bottom", "auxiliary", "decoder", "regressor", "tail")
CROSSING = (("up", "smashed"), ("up", "labels"), ("down", "cut_grad"))


def size(nbytes: float) -> str:
    """Return bytes in words."""
    unit, name = next((u, n) for u, n in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if nbytes >= u or n == "MB")
    return f"{nbytes / unit:.{1 if name == 'MB' else 2}f} {name}"


def accuracy(share: float) -> str:
    return f"{100 * share:.2f}"


def points(pairs: Sequence[Pair], metric: str = "accuracy_last5") -> list[float]:
    """Return by how many points the accuracy of a run differs, for each seed: of one that was run twice the mean."""
    found: dict[int, list[float]] = defaultdict(list)
    for row, base in pairs:
        if base and base is not row:
            found[row["seed"]].append(100 * (row[metric] - base[metric]))
    return [mean(same) for same in found.values()]


def difference(pairs: Sequence[Pair], metric: str = "accuracy_last5") -> str:
    """Return the mean difference with its 95 % Student-t interval, paired over seeds."""
    return over_seeds(points(pairs, metric))


def together(pairs: Sequence[Pair]) -> str:
    """Return by how many points both exits of a network are better than its last one alone."""
    return over_seeds([100 * (row["ensemble_accuracy_final"] - row["accuracy_final"]) for row, _ in pairs])


def over_seeds(found: Sequence[float]) -> str:
    """Return the mean with its 95 % Student-t interval."""
    if not found:
        return ""
    if len(found) < 2:
        return f"{found[0]:+.2f} (one seed)"
    middle, half = interval(found)
    return f"{middle:+.2f} ± {half:.2f}"


def separated(pairs: Sequence[Pair], at: float = -0.5) -> str:
    """Return the difference, and whether its interval says nothing of a loss of half a point."""
    found = points(pairs)
    if not found:
        return ""
    middle, half = interval(found) if len(found) > 1 else (found[0], math.inf)
    return f"{difference(pairs)}{', not separated' if abs(middle - at) <= half else ''}"


def within(pairs: Sequence[Pair]) -> str:
    """Return the least d for which the whole interval of the last round's difference lies inside of -d to d."""
    found = points(pairs, "accuracy_final")
    if len(found) < 2:
        return ""
    middle, half = interval(found)
    return f"{abs(middle) + half:.2f}"


def crossing(row: Row) -> int:
    """Return the bytes of activations, labels and gradients of a run."""
    return sum(row["bytes"][way].get(role, {}).get("payload", 0) for way, role in CROSSING)


def saved(pairs: Sequence[Pair]) -> str:
    """Return how many times fewer bytes cross than in the conventional run with its values as float32; nothing at another cut."""

    def float32(base: Row) -> int:
        labels = int(base["bytes"]["up"].get("labels", {}).get("payload", 0))
        return (2 if base["recipe"]["precision"] == "bfloat16" else 1) * (crossing(base) - labels) + labels

    found = [float32(base) / crossing(row) for row, base in pairs if base and base["recipe"]["cut"] == row["recipe"]["cut"]]
    return f"{mean(found):#.4g}" if found else ""


def less(pairs: Sequence[Pair]) -> str:
    """Return how many times less a client computes: forward in A and B, backward (two forwards) in A."""
    states = [row.get("states") or "A" * row["rounds"] for row, _ in pairs]
    return f"{mean(3 * len(s) / (3 * s.count('A') + s.count('B')) for s in states):.1f}"


def states(pairs: Sequence[Pair]) -> str:
    """Return the states of the first seed, those of long runs counted in every seed."""
    found = [row.get("states", "") for row, _ in pairs]
    if len(found[0]) < 24:
        return found[0]
    return f"{found[0][:20]}... ({'; '.join(', '.join(f'{each.count(s)} {s}' for s in 'ABC') for each in found)})"


def accuracies(metric: str) -> Column:
    """Return the column of an accuracy of every run."""
    return lambda pairs: " ".join(accuracy(row[metric]) for row, _ in pairs)


def each(show: Callable[[Row], str]) -> Column:
    """Return the column that shows a value of each run, or one value if they are the same."""

    def column(pairs: Sequence[Pair]) -> str:
        shown = [show(row) for row, _ in pairs]
        return shown[0] if len(set(shown)) == 1 else " ".join(shown)

    return column


def cost(row: Row) -> str:
    """Return the client's multiply-adds, in brackets as a share of a conventional client's."""
    if None in row["macs_per_sample"].values():
        return "unknown"
    share = client_share(row)
    return "" if share is None else f"{client_macs(row) / 1e6:.2f} M ({share:.2f})"


def until(level: float) -> Column:
    """Return the column of the bytes of training until runs reach an accuracy, and of the round."""

    def show(row: Row) -> str:
        r = reached(row["curve"], level)
        return "not reached" if r is None else f"{size(row['traffic'][r - 1])} ({r})"

    return each(show)


def seconds(row: Row) -> str:
    """Return the seconds of both sides' passes, forward + backward, of codecs, and of clients that wait."""
    spent = row["seconds"]
    sides = [" + ".join(f"{spent[f'{side}_{way}']:.0f}" for way in ("forward", "backward")) for side in ("client", "server")]
    return " / ".join((*sides, *(f"{spent[what]:.0f}" for what in ("codec", "wait"))))


def holding(row: Row) -> str:
    """Return what a client holds: multiply-adds of a sample's forward pass through all of it, its parameters, and its peak."""
    counts = [row["macs_per_sample"].get(part, 0) for part in CLIENT]
    macs = "unknown" if None in counts else f"{sum(counts) / 1e6:.2f} M"
    return f"{macs} / {sum(row['parameters'].get(part, 0) for part in CLIENT):,} / {peak(row, 'client')}"


def peak(row: Row, *sides: str) -> str:
    """Return the peak memory of sides; "live" marks rows of live tensors, others are of what autograd keeps for backward."""
    return measured(row, " / ".join(size(row["peak_memory_bytes"].get(side, 0)) for side in sides))


def measured(row: Row, text: str) -> str:
    """Return a text about memory with a mark where it is of live tensors."""
    return f"{text} live" if memory_figure(row) == MEMORY_FIGURE else text


def in_one_process(row: Row) -> str:
    """Return what a process would need that is both sides of one client: their sum where the client's graph waits for a gradient.

    Where nothing comes back it would hold one side's graph at a time, and of the other side weights, gradients and momentum alone.
    """
    if row["num_clients"] > 1:
        return ""
    client, server = (row["peak_memory_bytes"][side] for side in ("client", "server"))
    if row["bytes"]["down"].get("cut_grad"):
        return measured(row, size(client + server))
    resting = {part: 12 * n for part, n in row["parameters"].items()}
    return measured(
        row, size(max(client + resting.get("top", 0), server + sum(n for part, n in resting.items() if part != "top")))
    )


def leak(row: Row, figure: str, form: str) -> str:
    """Return what an attack found, in brackets the same without what crosses; nothing where it was not open."""
    found = row["audit"]
    return f"{found[figure]:{form}} ({found[f'{figure}_without']:{form}})" if figure in found else ""


LAST5: dict[str, Column] = {"last five, %": accuracies("accuracy_last5")}
FINAL: dict[str, Column] = {"final, %": accuracies("accuracy_final")}
PEAK: dict[str, Column] = {"peak, %": accuracies("accuracy_peak")}
DIFFERENCE: dict[str, Column] = {"last five against conventional": difference}
FINAL_DIFFERENCE: dict[str, Column] = {"final against conventional": partial(difference, metric="accuracy_final")}
WITHIN: dict[str, Column] = {"on par within": within}
BYTES: dict[str, Column] = {
    "up / down": each(lambda row: f"{size(training_bytes(row, 'up'))} / {size(training_bytes(row, 'down'))}")
}
PER_CLIENT: dict[str, Column] = {
    "per client": each(lambda row: size(sum(training_bytes(row, way) for way in ("up", "down")) / row["num_clients"]))
}
FEWER: dict[str, Column] = {"fewer bytes than float32": saved}
SECONDS: dict[str, Column] = {"seconds forward + backward at client / at server / codec / wait": each(seconds)}
COST: dict[str, Column] = {"client multiply-adds": each(cost)}
HOLDING: dict[str, Column] = {"client: forward multiply-adds / parameters / peak memory": each(holding)}
MEMORY: dict[str, Column] = {"peak memory at client / server": each(lambda row: peak(row, "client", "server"))}
WHOLE: dict[str, Column] = {"in one process": each(in_one_process)}
SEPARATED: dict[str, Column] = {"last five against conventional": separated}
SIMULATED: dict[str, Column] = {
    "simulated": each(lambda row: f"{row['simulated']['seconds'] / 60:.0f} min" if row.get("simulated") else "")
}
STATES: dict[str, Column] = {"states": states}
EXITS: dict[str, Column] = {
    "head, %": accuracies("auxiliary_accuracy_final"),
    "both, %": accuracies("ensemble_accuracy_final"),
    "both against final": together,
}
LEAKS: dict[str, Column] = {
    "rebuilt, dB": each(lambda row: leak(row, "psnr", ".1f")),
    "SSIM": each(lambda row: leak(row, "ssim", ".2f")),
    "distance correlation": each(lambda row: leak(row, "distance_correlation", ".2f")),
    "labels": each(lambda row: leak(row, "label_accuracy", ".3f")),
}
LESS: dict[str, Column] = {"less client computation": less}
