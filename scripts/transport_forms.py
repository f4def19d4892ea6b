"""Forms of tables and sentences on parties in processes of their own."""

import statistics
from collections import Counter
from collections.abc import Sequence

from epoch import SCHEMES as EPOCH
from result_rows import Row, newest, table


def kill(found: Sequence[Row]) -> str:
    lines = []
    for key in dict.fromkeys((row["kind"], row["schedule"]) for row in found):
        mine = [row for row in found if (row["kind"], row["schedule"]) == key]
        victims = Counter(name for row in mine for name in row["victims"])
        killed = ", ".join(f"{name} {victims[name]}" for name in sorted(victims))
        middle = statistics.median(row["seconds"] for row in mine)
        lines.append([*key, len(mine), killed, sum(row["equal"] for row in mine), f"{middle:.0f}"])
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(row["seed"] for row in found))
    heads = ["kind", "schedule", "trials", "killed", "weights the same bits", "seconds, median"]
    return table(heads, lines) + f"\n\nSeed {seeds}."


def hostile(found: Sequence[Row]) -> str:
    rows = newest(found, "attack")
    base = rows["none",][1]
    lines = []
    for (attack,), (number, row) in rows.items():
        more = (row["server_peak_bytes"] - base["server_peak_bytes"]) / 2**20
        seconds = row["seconds"] - base["seconds"]
        cost = ["", ""] if attack == "none" else [f"{seconds:+.0f}", f"{more:+.0f}"]
        left = "" if row["mark"] is None else f"mark {row['mark']}"
        lines.append([attack, row["attempts"], left, "yes" if row["equal"] else "no", *cost, f"L{number}"])
    heads = [
        "attack",
        "attempts",
        "attacker left out at",
        "weights the same bits",
        "seconds more",
        "MB more at the server",
        "row",
    ]
    undisturbed = f"Without an attack: {base['seconds']:.0f} s and {base['server_peak_bytes'] / 2**20:.0f} MB."
    return f"{table(heads, lines)}\n\n{undisturbed}"


def organisations(found: Sequence[Row]) -> str:
    row = found[-1]
    return (
        "Three processes with folders of their own (data, certificate, marks) train the small CIFAR-10 run over gRPC with mutual TLS: "
        "ResNet-20, splitfed_v1, a server and two clients with 5,000 images each, full test set. The second client was killed at batch "
        f"{row['killed_at']} of {row['steps']} and started again: the final weights are those of the undisturbed run, bit for bit "
        f"({100 * row['accuracy']:.2f} %). {row['seconds']:.0f} s undisturbed, {row['seconds_killed']:.0f} s with the death; "
        f"{row['repeated_bytes'] / 1e6:.1f} MB were sent twice."
    )


def fuzz(found: Sequence[Row]) -> str:
    row = found[-1]
    return (
        f"{row['seconds']:.0f} s each: {row['frames']:,} damaged or random frames to `loads`, of which "
        f"{row['refused']:,} were refused and the "
        f"others happen to be well-formed; {row['connections']} connections of random bytes, greetings and "
        f"records to a server's port, "
        f"which cost {row['growth_bytes'] / 2**20:.0f} MB of memory. The run that followed on that server has the weights of one process."
    )


def throughput(found: Sequence[Row]) -> str:
    lines = []
    for (transport, what), (number, row) in newest(found, "transport", "what").items():
        new = f"{row['ratio_new']:.3f}" if "ratio_new" in row else ""
        bare = f"{row['bare']:.3g} {row['unit']}"
        lines.append([transport, what, bare, f"{row['ours']:.3g}", f"{row['ratio']:.3f}", new, f"L{number}"])
    return table(["transport", "what", "bare medium", "cutlayer", "ratio", "to bare into new memory", "row"], lines)


def epoch(rows: Sequence[Row]) -> str:
    found = [row | {"line": i} for i, row in enumerate(rows, 1) if row.get("options") == EPOCH[row["scheme"]]]
    transports = list(dict.fromkeys(row["transport"] for row in found))
    lines = []
    for scheme in dict.fromkeys(row["scheme"] for row in found):
        cells = []
        for transport in transports:
            mine = [row for row in found if (row["scheme"], row["transport"]) == (scheme, transport)]
            where = ", ".join(f"L{row['line']}" for row in mine)
            cells.append(f"{statistics.median(row['seconds'] for row in mine):.1f} ({where})" if mine else "not run")
        lines.append([scheme, *cells])
    return table(["seconds an epoch", *transports], lines)


def calibrate(found: Sequence[Row]) -> str:
    lines, errors = [], []
    for number, row in enumerate(found, 1):
        errors.append(abs(row["predicted"] - row["measured"]) / row["measured"])
        up, down, latency = row["line"]
        seconds = [f"{row[which]:.2f}" for which in ("predicted", "measured")]
        line = [f"{up:g}, {down:g}; {latency:g}", "netem" if row["netem"] else "proxy"]
        lines.append([row["scheme"], *line, *seconds, f"{100 * errors[-1]:.0f} %", f"L{number}"])
    heads = ["scheme", "Mbit/s up, down; ms", "line", "predicted, s", "measured, s", "error", "row"]
    return table(heads, lines) + f"\n\nMedian error {100 * statistics.median(errors):.0f} %; the aim is 15 %."
