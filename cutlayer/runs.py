"""Runs as read, sorted into configurations: labels, series, payloads, intervals over seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, NamedTuple

from .recipes.recipe import CUSTOM
from .recipes.recorded import recorded

MEMORY_FIGURE = "live tensors"  # what peak_memory_bytes measures now
OLD_MEMORY_FIGURE = "kept for backward"  # what it measured before summaries named it
APART = ("name", "seed", "data_dir", "options")  # fields that say nothing about the configuration

# Two-sided 95 % points of Student's t by degrees of freedom; beyond the table its last one, which is a little too wide.
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120
)  # fmt: skip


class Run(NamedTuple):
    """A run as its folder holds it: `summary` of summary.json, `records` of records.jsonl, and a label for the reader."""

    summary: dict[str, Any]
    records: list[dict[str, Any]]
    label: str = ""

    @property
    def recipe(self) -> dict[str, Any]:
        """The flat fields of the recipe."""
        return recorded(self.summary.get("recipe") or {})

    @property
    def metric(self) -> str:
        """The name of the figure that is evaluated, in the records too."""
        return str(self.summary.get("metric") or "accuracy")

    @property
    def memory_figure(self) -> str:
        """What the peaks of memory measure."""
        return memory_figure(self.summary)


class Group(NamedTuple):
    """One configuration: its number and letter (none if it is alone), its label, and its runs, one per seed."""

    number: int
    letter: str
    label: str
    runs: list[Run]
    short: str  # what stands at a curve: the letter, and the label's values where all are short


def memory_figure(summary: Mapping[str, Any]) -> str:
    """Return what the peaks of memory of a summary, or of a row of results, measure."""
    return str(summary.get("memory_figure") or OLD_MEMORY_FIGURE)


def payload(run: Run, direction: str, roles: Iterable[str] | None = None) -> int:
    """Return the payload bytes that went "up" or "down" in some roles; without roles in all but the evaluation."""
    table = (run.summary.get("bytes") or {}).get(direction) or {}
    return sum(n["payload"] for role, n in table.items() if (role in roles if roles is not None else role != "evaluation"))


def series(run: Run, name: str) -> tuple[list[int], list[float]]:
    """Return the rounds (from 1) that recorded a figure, and the figure there."""
    found = [(r["round"] + 1, float(r[name])) for r in run.records if isinstance(r.get(name), int | float)]
    return [x for x, _ in found], [y for _, y in found]


def scaled(metric: str) -> tuple[int, str, int]:
    """Return what a metric is multiplied by to be shown, its unit and its digits."""
    return (100, " %", 2) if "accuracy" in metric else (1, "", 4)


def human(number: float | None, unit: str = "B") -> str:
    """Return a number with a decimal prefix and three digits, as in "16.4 MB"; a dash for None."""
    if number is None:
        return "-"
    if number == 0:
        return f"0 {unit}".strip()
    power = min(4, int(max(0.0, math.log10(abs(number))) / 3))
    if power < 4 and round(abs(number) / 1000**power, 1) >= 1000:
        power += 1
    scaled = number / 1000**power
    digits = 0 if power == 0 and float(number).is_integer() else max(0, 2 - int(math.log10(max(1.0, abs(scaled)))))
    return f"{scaled:,.{digits}f} {['', 'k', 'M', 'G', 'T'][power]}{unit}".strip()


def word(value: Any) -> str:
    """Return the value of a recipe field as a reader writes it."""
    if isinstance(value, dict):
        return " ".join(f"{role} {name}" for role, name in value.items()) or "none"
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def differences(runs: Sequence[Run]) -> list[str]:
    """Return the fields in which recipes differ; a field that some lack, as another method's option, is none by that alone.

    Where schemes differ, a field that follows from the scheme alone is left out, unless some run's scheme is custom.
    """
    names = dict.fromkeys(k for run in runs for k in run.recipe if k not in APART)
    found = [k for k in names if len({word(run.recipe[k]) for run in runs if k in run.recipe}) > 1]
    if "scheme" not in found:
        return found
    pairs = {
        k: {(run.recipe["scheme"], word(run.recipe[k])) for run in runs if k in run.recipe and "scheme" in run.recipe}
        for k in found
    }
    schemes = {k: {scheme for scheme, _ in pairs[k]} for k in found}
    return [k for k in found if k == "scheme" or CUSTOM in schemes[k] or len(pairs[k]) > len(schemes[k])]


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Return the configurations in order of appearance, seeds together; the same seed again is a configuration of its own.

    What a run is called says nothing about its configuration: names are shown where they tell all apart, and join no runs.
    """
    fields, sorted_out = differences(runs), dict[tuple[str, str, int], list[Run]]()
    for run in runs:
        parts = ", ".join(f"{k}={word(run.recipe[k])}" for k in fields if k in run.recipe)
        again = 0
        while any(run.summary.get("seed") == o.summary.get("seed") for o in sorted_out.get((run.label, parts, again), [])):
            again += 1
        sorted_out.setdefault((run.label, parts, again), []).append(run)
    names = _labels(sorted_out)
    values = [" ".join(part.partition("=")[2] or part for part in name.split(", ")) for name in names]
    letters = [ascii_uppercase[i % 26] + str(i // 26 or "") if len(names) > 1 else "" for i in range(len(names))]
    brief = max(map(len, values), default=0) <= 16
    shorts = [f"{letter} {value}" if brief and letter else letter for letter, value in zip(letters, values, strict=True)]
    return [Group(i, letters[i], names[i], members, shorts[i]) for i, members in enumerate(sorted_out.values())]


def _labels(sorted_out: Mapping[tuple[str, str, int], Sequence[Run]]) -> list[str]:
    """Return what each configuration is called: its label, or its name where names tell all apart, or what differs."""
    called = [{run.recipe.get("name") or "" for run in members} for members in sorted_out.values()]
    named = [name for names in called for name in names if name]
    tell = max(map(len, called)) == 1 < len(named) == len(set(named))
    labels = []
    for (label, parts, again), members in sorted_out.items():
        recipe = members[0].recipe
        if not label and tell and recipe.get("name"):
            labels.append(recipe["name"])
            continue
        if label and len({other for mine, other, _ in sorted_out if mine == label}) > 1:
            label = f"{label}, {parts}"
        label = label or parts or recipe.get("name") or recipe.get("scheme") or recipe.get("method") or "run"
        labels.append(label + (f" ({again + 1})" if again else ""))
    return labels


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least two values and the half-width of its 95 % Student-t interval."""
    middle = mean(values)
    deviation = math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))
    return middle, STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * deviation / math.sqrt(len(values))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
