"""Write docs/results.md from the rows of benchmarks/results; a test asks that it is up to date."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from result_rows import client_macs, client_share, rows, training_bytes
from scipy import stats
from table_results import sections as tables
from transport_results import sections

from cutlayer.recipes.schemes import SCHEMES

ROOT = Path(__file__).resolve().parent.parent


def interval(values: Iterable[float]) -> str:
    """Return mean and half-width of the 95 % Student-t interval."""
    mean, half = student(list(values))
    return f"{mean:+.2f} (one seed)" if half is None else f"{mean:+.2f} ± {half:.2f}"


def student(values: list[float]) -> tuple[float, float | None]:
    """Return the mean and the half-width of its 95 % interval, which one value has not."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, None
    sd = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)


def separated(values: list[float], at: float = -0.5) -> str:
    """Return the interval, and whether it says nothing of a loss of half a point."""
    mean, half = student(values)
    inside = half is None or mean - half <= at <= mean + half
    return f"{interval(values)}{', not separated' if inside else ''}"


def provenance(found: list[dict[str, Any]]) -> str:
    """Return where and with what rows were measured."""
    commits = ", ".join(dict.fromkeys(f"`{row['commit']}`" for row in found if "commit" in row))
    last = found[-1]
    versions = last["versions"]
    machines = [
        f"{row['machine']['processor']}, {row.get('num_threads') or row['recipe']['num_threads']} threads"
        for row in found
        if "machine" in row
    ]
    where = "; ".join(dict.fromkeys(machines))
    return f"`{last['command']}`, commit {commits}, {where}, torch {versions['torch']}, Python {versions['python']}."


def overhead() -> str:
    """Return the section on what the package costs over raw PyTorch."""
    found = rows("overhead")
    if not found:
        return "Not run.\n"
    newest = {row["method"]: row for row in found}
    lines = [
        "| method | package / twin, median | 95 % interval | ms a step, package | ms a step, twin |",
        "|---|---|---|---|---|",
    ]
    for method, row in newest.items():
        low, high = row["interval_95"]
        ms = row["ms_per_step"]
        lines.append(
            f"| `{method}` | {row['median_ratio']:.3f} | {low:.3f} to {high:.3f} | {ms['package']:.1f} | {ms['twin']:.1f} |"
        )
    return "\n".join(lines) + f"\n\n{provenance(list(newest.values()))}\n"


def heads() -> str:
    """Return the section on the auxiliary heads."""
    found = rows("heads")
    done = [row for row in found if "failed" not in row]
    if not done:
        return "Not run.\n"
    base = {row["seed"]: row for row in done if row["configuration"] == "conventional"}
    lines = [
        "| configuration | seeds | last five, % | final, % | last five against conventional, points | bytes up / down "
        "| client multiply-adds | client's peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["configuration"] for row in found):
        mine = [row for row in done if row["configuration"] == name]
        failed = len([row for row in found if row["configuration"] == name]) - len(mine)
        if not mine:
            lines.append(f"| {name} | 0 of {failed} | failed | | | | | |")
            continue
        last5, final = ([100 * row[key] for row in mine] for key in ("accuracy_last5", "accuracy_final"))
        pairs = [100 * (row["accuracy_last5"] - base[row["seed"]]["accuracy_last5"]) for row in mine if row["seed"] in base]
        up, down = (training_bytes(mine[0], way) for way in ("up", "down"))
        cost = f"{client_macs(mine[0]) / 1e6:.2f} M ({client_share(mine[0]):.2f})"
        lines.append(
            f"| {name} | {len(mine)} | {' '.join(f'{v:.2f}' for v in last5)} | {' '.join(f'{v:.2f}' for v in final)} | "
            f"{interval(pairs) if name != 'conventional' else ''} | {up / 1e6:.0f} / {down / 1e6:.0f} MB | {cost} | "
            f"{mine[0]['peak_memory_bytes']['client'] / 1e6:.1f} MB |"
        )
    return "\n".join(lines) + f"\n\n{provenance(done)}\n"


def schemes() -> str:
    """Return the section on all schemes; what was not run says so."""
    found = {(row["scheme"], row["partition"]): row for row in rows("schemes")}
    lines = ["| scheme | partition | last five, % | final, % | bytes up / down | simulated |", "|---|---|---|---|---|---|"]
    for partition in ("iid", "dirichlet"):
        for name in SCHEMES:
            row = found.get((name, partition))
            if row is None:
                lines.append(f"| `{name}` | {partition} | not run | | | |")
                continue
            up, down = (training_bytes(row, way) for way in ("up", "down"))
            last5, final = 100 * row["accuracy_last5"], 100 * row["accuracy_final"]
            clock = f"{row['simulated']['seconds'] / 60:.0f} min" if row.get("simulated") else "not run"
            lines.append(
                f"| `{name}` | {partition} | {last5:.2f} | {final:.2f} | {up / 1e6:.0f} / {down / 1e6:.0f} MB | {clock} |"
            )
    return "\n".join(lines) + (f"\n\n{provenance(list(found.values()))}\n" if found else "")


def loss_threshold() -> str:
    """Return the section on updating rarely: bytes saved beside the paired difference of accuracies."""
    found = rows("loss_threshold")
    if not found:
        return "Not run.\n"
    base = {(row["seed"], *size(row)): row for row in found if row["configuration"] == "conventional"}
    lines = [
        "| configuration | images, rounds | seeds | states of seed 0 | last five, % | difference, points | fewer bytes than float32 "
        "| less client computation |"
    ]
    lines.append("|---" * 8 + "|")
    for name, of in dict.fromkeys((row["configuration"], size(row)) for row in found):
        mine = [row for row in found if (row["configuration"], size(row)) == (name, of)]
        pairs = [(row, base[row["seed"], *of]) for row in mine if (row["seed"], *of) in base]
        points = [100 * (row["accuracy_last5"] - other["accuracy_last5"]) for row, other in pairs]
        # activations and gradients of the conventional run were bfloat16
        saved = [(2 * crossing(other) - labels(other)) / crossing(row) for row, other in pairs]
        last5 = " ".join(f"{100 * row['accuracy_last5']:.2f}" for row in mine)
        runs = mine[0].get("states", "")
        shown = runs if len(runs) < 24 else f"{runs[:20]}... ({', '.join(f'{runs.count(s)} {s}' for s in 'ABC')})"
        lines.append(
            f"| {name} | {of[0]}, {of[1]} | {len(mine)} | {shown} | {last5} | "
            f"{separated(points) if name != 'conventional' else ''} | {mean(saved):.1f} | {mean([less(row) for row in mine]):.1f} |"
        )
    return "\n".join(lines) + f"\n\n{provenance(found)}\n"


def less(row: dict[str, Any]) -> float:
    """Return how many times less a client computes: forward in A and B, backward (two forwards) in A."""
    states = row.get("states") or "A" * row["rounds"]
    return 3 * len(states) / (3 * states.count("A") + states.count("B"))


def size(row: dict[str, Any]) -> tuple[int, int]:
    """Return the training images and the rounds of a run."""
    return row["recipe"]["num_train"], row["rounds"]


def labels(row: dict[str, Any]) -> int:
    """Return the bytes of a run's labels."""
    return int(row["bytes"]["up"].get("labels", {}).get("payload", 0))


def crossing(row: dict[str, Any]) -> int:
    """Return the bytes of activations, labels and gradients of a run."""
    return sum(row["bytes"][way].get(role, {}).get("payload", 0) for way, role in CROSSING)


CROSSING = (("up", "smashed"), ("up", "labels"), ("down", "cut_grad"))


def overlap() -> str:
    """Return the section on what a client that waits for nobody saves."""
    found = {row["cut"]: row for row in rows("overlap")}
    if not found:
        return "Not run.\n"
    names = list(dict.fromkeys(name for row in found.values() for name in row["ms_per_batch"]))
    lines = ["| ms for a batch of 128 | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{row['ms_per_batch'][name]:.0f}" for row in found.values()) + " |" for name in names
    ]
    lines += ["", "| decoupled over the best conventional | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    first = next(iter(found.values()))
    for head, ratios in first["ratio"].items():
        for at in ratios:
            lines.append(f"| {head}, at {at} | " + " | ".join(f"{row['ratio'][head][at]:.2f}" for row in found.values()) + " |")
        lines.append(
            f"| {head}, bound over its own serial time | "
            + " | ".join(f"{r['bound'][head]:.2f}" for r in found.values())
            + " |"
        )
    return "\n".join(lines) + f"\n\n{provenance([{**row, 'num_threads': 1} for row in found.values()])}\n"


def page() -> str:
    """Return the page."""
    return f"""# Results

Each row of `benchmarks/results/*.jsonl` carries its command, commit, machine and versions; this page is made of them by
`python scripts/results_page.py`.

## What the package costs over raw PyTorch

`examples/plain_split.py` and the package take turns every 10 batches, in one process, on the same tensors, 40 pairs, meter on;
ResNet-20 at 32x32, cut after its second block, batch 128, bfloat16. Both end with the same weights, bit for bit.
The aim was an upper end of at most 1.05.

{overhead()}
## What the auxiliary head decides

ResNet-20 on the first 10,000 training images of CIFAR-10 (the JPEG copy named in every row), full test set, 12 rounds of the strong
schedule, shallow cut, bfloat16. A figure for each seed; differences are paired over seeds, mean and 95 % Student-t interval. Bytes are
those of bfloat16 activations, 2 per value. The client's multiply-adds, forward and backward, are given as a forward pass has them and, in
brackets, as a share of a conventional client's; with `half backward` half of each batch goes backward at the client, and all of it is
sent. The seconds in these rows were taken while the machine did other work: compare none of them.

![Accuracy against the client's multiply-adds](figures/frontier.svg)

{heads()}
## Every scheme, five clients

ResNet-20 on the first 10,000 training images of CIFAR-10, full test set, 12 rounds of the strong schedule (one pass over each client's data
a round), shallow cut, bfloat16, one seed; Dirichlet with alpha 0.5. Averaged schemes take a fifth of the steps between averages, and twelve
rounds are few for them: FedAvg of the uncut network is the figure to see them beside, and splitfed_v1 equals it bit for bit. Where clients
differ (splitfed_v3, psl) it is the mean over clients. Simulated minutes are those of links of 20 Mbit/s up, 50 down and 30 ms each
way, clients of 10 and a server of 100 billion multiply-adds a second; `hosl` and `heron_sfl` run at lr 0.001, and `fsl_sage` aligns
every 4 rounds, 10 passes over the newest 256 activations of each client, far less than its authors' 100 over 1000.

With Dirichlet shares a top that learns one client after the other forgets (vanilla, u_shaped, splitfed_v2, dsl, dsl_seq: 20 to 25 %).
Averaging holds 41 % (splitfed_v1, which is FedAvg), merging at arrival 49 % (async_splitfed), and decoupled clients at once over one top
that takes their batches in random order 53 % (dsl_fed), at an eighth of vanilla's simulated time.

![Accuracy against simulated time](figures/schemes.svg)

{schemes()}
## Updating rarely, with 8-bit floats

VGG11, one client, the first training images of CIFAR-10, 2,000 test images (arXiv 2107.09786 has 1.64 to 106.7 times fewer bytes, on all
50,000). A: full exchange, B: activations alone, C: nothing crosses.

At this size what a threshold saves beyond the 8 bits costs accuracy: a loss that falls in nearly every round calls for a full exchange
again and again, and a client that rests meanwhile learns less. Only the largest of three thresholds is separated from half a point, by
far; of the other two nothing can be said with three seeds.

{loss_threshold()}
## What a client saves that waits for nobody

ResNet-20, bfloat16, medians of five. Every party has one core and one thread (all clients share one core, the server has the other);
beside it stands conventional split learning in one thread of control with both cores, the honest figure for a single machine.
Conventional runs do not idle: four micro-batches of 32 in flight (the server steps for each), or two or five clients with copies of
the top whose turns fill the server's gaps. Messages take 0, 10 or 50 ms each way; a decoupled client waits for none of them.

The aim, 0.75 or less of the best conventional with mlp and block, is reached once, by mlp after block 3 at 50 ms. Where two
clients fill the gaps, conventional split learning has the same bound as a decoupled run, the slower of both sides, and the
head's cost decides: at 0 ms nothing is gained. Against the one client that waits, decoupling takes 0.57 to 0.8 of the time. With
mlp it pays from 10 ms on at the first two cuts, with block from 50 ms.

{overlap()}
{tables(rows, provenance)}
{sections(rows, provenance)}"""


if __name__ == "__main__":
    (ROOT / "docs" / "results.md").write_text(page())
    print("wrote docs/results.md", file=sys.stderr)
