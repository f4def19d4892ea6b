"""What the records of runs say in words: failures, what to try, what was saved."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .runs import APART, Run, human, interval, mean, payload, scaled, series

CUT_ROLES = ("smashed", "cut_grad", "features", "feature_grad")  # what crosses at a cut, batch after batch
ANSWERS = ("cut_grad", "features", "loss")  # what comes down in answer to a batch


class Finding(NamedTuple):
    """One statement about a run; `kind` names it across seeds, `good` is False where something should be tried."""

    kind: str
    good: bool | None  # None: for the reader to judge
    text: str


def findings(run: Run) -> list[str]:
    """Return what the records of a run say, worst first, each statement with what to try."""
    return [finding.text for finding in found(run)]


def found(run: Run) -> list[Finding]:
    """Return the findings of one run with their kinds, troubles before good news."""
    rules: tuple[Callable[[Run], Finding | None], ...] = (
        _loss, _chance, _activations, _rank, _stall, _cosine, _rest, _left, _memory, _one_way,
    )  # fmt: skip
    return sorted((f for rule in rules if (f := rule(run)) is not None), key=lambda f: bool(f.good))


def _loss(run: Run) -> Finding | None:
    rounds, values = series(run, "train_loss")
    broken = [x for x, y in zip(rounds, values, strict=True) if not math.isfinite(y)]
    if broken:
        return Finding("loss", False, f"train_loss is not a finite number from round {broken[0]} on. Lower lr, or set clip.")
    if len(values) < 2:
        return None
    low, last = min(values), values[-1]
    if last < 3 * low or last < values[0]:
        return None
    where = rounds[values.index(low)]
    said = f"train_loss rose from {low:.3g} (round {where}) to {last:.3g} (round {rounds[-1]})."
    return Finding("loss", False, f"{said} Lower lr, set clip, or begin with warmup_rounds.")


def _chance(run: Run) -> Finding | None:
    counts = [sum(column) for column in zip(*(run.summary.get("class_counts") or []), strict=False)]
    rounds, values = series(run, run.metric)
    if len(counts) < 2 or not sum(counts) or not values or "accuracy" not in run.metric:
        return None
    chance = max(counts) / sum(counts)  # of a model that always answers the most frequent class
    limit = chance + max(0.01, 0.1 * chance)
    if values[-1] > limit:
        return None
    peak = max(values)
    past = f" after {peak:.1%} in round {rounds[values.index(peak)]}: it fell back" if peak > 2 * limit else ""
    said = f"{run.metric} is {values[-1]:.1%} in round {rounds[-1]}, where guessing gives {chance:.1%}{past}."
    return Finding("chance", False, f"{said} Try another lr, more rounds, and check that the labels belong to the samples.")


def _stall(run: Run) -> Finding | None:
    _, mine = series(run, f"auxiliary_{run.metric}")
    _, server = series(run, run.metric)
    half = len(mine) // 2
    if half < 2 or len(server) != len(mine) or server[-1] > 0.95:
        return None
    gain, other = (mean(values[-2:]) - mean(values[half - 1 : half + 1]) for values in (mine, server))
    if gain < 0.02 or other > 0.25 * gain:
        return None
    said = f"In the second half auxiliary_{run.metric} rose by {100 * gain:.1f} points and the server's by {100 * other:.1f}."
    advice = "The bottom learns what only its own head can use: try a later cut, a smaller auxiliary head,"
    return Finding("stall", False, f"{said} {advice} reconstruction, or lambda_weight above 0.")


def _rank(run: Run) -> Finding | None:
    rounds, values = series(run, "effective_rank")
    if len(values) < 2 or values[-1] > 0.5 * max(values):
        return None
    said = f"effective_rank at the cut fell from {max(values):.1f} to {values[-1]:.1f} (round {rounds[-1]})."
    advice = "Little is left for the server: try a smaller auxiliary head, reconstruction, or a lower weight_decay."
    return Finding("rank", False, f"{said} {advice}")


def _cosine(run: Run) -> Finding | None:
    _, values = series(run, "gradient_cosine")
    late = values[len(values) // 2 :]
    if len(late) < 3 or sum(y < 0 for y in late) < 0.8 * len(late):
        return None
    said = f"gradient_cosine is {mean(late):.2f} on average in the second half: the local loss works against the server's."
    return Finding("cosine", False, f"{said} Try lambda_weight above 0, or a later cut.")


def _activations(run: Run) -> Finding | None:
    rounds, values = series(run, "activation_norm")
    if len(values) < 2 or (math.isfinite(values[-1]) and values[-1] < 10 * values[0]):
        return None
    said = f"activation_norm at the cut went from {values[0]:.3g} to {values[-1]:.3g} (round {rounds[-1]})."
    return Finding("activations", False, f"{said} Lower lr, set clip or weight_decay, or cut after a normalisation.")


def _rest(run: Run) -> Finding | None:
    rounds, states = series(run, "state")
    last = max((x for x, state in zip(rounds, states, strict=True) if state == 0), default=0)
    if len(rounds) < 4 or last > len(rounds) // 2:
        return None
    said = f"The clients have not learned since round {last} of {rounds[-1]}: the loss never moved by the threshold."
    return Finding("rest", False, f"{said} Lower threshold, or set max_rest.")


def _left(run: Run) -> Finding | None:
    for side, nbytes in (run.summary.get("bytes_left_after_step") or {}).items():
        if nbytes:
            said = f"The {side} still holds {human(nbytes)} of a batch's graph when its step is over."
            return Finding(
                "left", False, f"{said} Something keeps a tensor of the graph: detach what a method or a loss remembers."
            )
    return None


def _memory(run: Run) -> Finding | None:
    peak = run.summary.get("peak_memory_bytes") or {}
    client, server = peak.get("client", 0), peak.get("server", 0)
    if not client or not server or client < server:
        return None
    said = f"The client's peak memory ({human(client)}) is not below the server's ({human(server)})."
    return Finding("memory", False, f"{said} Cut earlier, or take a smaller auxiliary head or batch_size.")


def _one_way(run: Run) -> Finding | None:
    down, smashed = (run.summary.get("bytes") or {}).get("down") or {}, payload(run, "up", ["smashed"])
    if not smashed or payload(run, "down", ANSWERS):
        return None
    rest, evaluation = payload(run, "down"), payload(run, "down", ["evaluation"])
    if not rest:
        tail = f" ({human(evaluation)})" if evaluation else ""
        what = f"Nothing came down but evaluation{tail}" if evaluation else "Nothing came down"
        return Finding("one way", True, f"{what}: {human(smashed)} of activations went up and got no answer.")
    roles = " and ".join(role for role, n in down.items() if n["payload"] and role != "evaluation")
    said = f"No batch was answered: {human(smashed)} of activations went up, and only {roles} ({human(rest)}) came down."
    return Finding("one way", True, said)


def baseline(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the conventional run (method backprop) nearest to this one, of the same data and rounds, or None."""
    same = [r for r in runs if r.recipe.get("method") == "backprop" and r.summary.get("rounds") == run.summary.get("rounds")]
    same = [r for r in same if all(r.recipe.get(k) == run.recipe.get(k) for k in ("data", "num_train", "local_epochs"))]
    if run.recipe.get("method") in (None, "backprop") or run.recipe.get("cut") == "none" or not same:
        return None
    return min(same, key=lambda r: (len(differing(run, r)), r.recipe.get("seed") != run.recipe.get("seed")))


def comparable(run: Run, other: Run) -> bool:
    """Return whether two runs had the same data, dealt in the same way, so that their accuracies may be set side by side."""
    return all(run.recipe.get(k) == other.recipe.get(k) for k in ("data", "num_train", "num_clients", "partition"))


def differing(run: Run, other: Run) -> list[str]:
    """Return the fields that both recipes have with different values, beside method and seed."""
    mine, theirs = run.recipe, other.recipe
    return [k for k in mine if k in theirs and mine[k] != theirs[k] and k not in (*APART, "scheme", "method")]


def against(run: Run, other: Run, name: str = "the conventional run") -> list[Finding]:
    """Return what a run saved, or did not, beside a conventional run: bytes at the cut, all bytes, client memory."""
    made = []
    also = f" (they also differ in {', '.join(fields)})" if (fields := differing(run, other)) else ""
    cut, other_cut = (payload(r, "up", CUT_ROLES) + payload(r, "down", CUT_ROLES) for r in (run, other))
    total, other_total = (payload(r, "up") + payload(r, "down") for r in (run, other))
    if cut and other_cut and total and other_total:
        half = "exactly half" if 2 * cut == other_cut else f"{cut / other_cut:.4g} times"
        said = f"The bytes at the cut are {half} those of {name}: {cut:,} against {other_cut:,}{also}."
        rest = f"With labels and weights it is {total:,} against {other_total:,} bytes, a ratio of {total / other_total:.4f}."
        made.append(Finding("bytes", cut < other_cut, f"{said} {rest}"))
    mine, theirs = ((r.summary.get("peak_memory_bytes") or {}).get("client", 0) for r in (run, other))
    if mine and theirs and not fields and run.memory_figure == other.memory_figure:
        verdict = f"The client's peak memory is {'' if mine < theirs else 'not '}below that of {name}"
        advice = "" if mine < theirs else " The auxiliary head costs more than the answer saves: make it smaller."
        made.append(Finding("client memory", mine < theirs, f"{verdict}: {human(mine)} against {human(theirs)}.{advice}"))
    return made


def paired(runs: Sequence[Run], others: Sequence[Run], name: str) -> Finding | None:
    """Return the difference of the final figure from another configuration, over the seeds that both have."""
    theirs = {run.summary.get("seed"): run.summary.get("accuracy_final") for run in others}
    both = [(run.summary.get("accuracy_final"), theirs.get(run.summary.get("seed"))) for run in runs]
    gaps = [mine - other for mine, other in both if mine is not None and other is not None]
    metric = runs[0].metric
    if not gaps or metric != others[0].metric:
        return None
    scale, unit, digits = scaled(metric)
    unit = " points" if unit else ""
    mean, half = interval(gaps) if len(gaps) > 1 else (gaps[0], 0.0)
    said = f"Final {metric} minus that of {name}: {scale * mean:+.{digits}f}"
    if len(gaps) == 1:
        return Finding("paired", None, f"{said}{unit}, from one seed; more seeds would give it an interval.")
    return Finding(
        "paired", None, f"{said} ± {scale * half:.{digits}f}{unit} (paired differences of {len(gaps)} seeds, 95 % interval)."
    )
