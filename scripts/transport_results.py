"""The sections of docs/results.md on parties in processes of their own."""

import statistics
from collections.abc import Callable
from typing import Any

Rows = Callable[[str], list[dict[str, Any]]]
Row = dict[str, Any]


def sections(rows: Rows, provenance: Callable[[list[Row]], str]) -> str:
    """Return all sections, one for each file of results; one that was not run says so."""
    told = []
    for title, name, text in (
        ("Killed at random steps", "kill", kill), ("An organisation that dies and comes back", "organisations", organisations),
        ("Nonsense", "fuzz", fuzz), ("What a transport leaves of its medium", "throughput", throughput),
        ("An epoch on every transport", "epoch", epoch), ("Does the virtual clock tell the truth", "calibrate", calibrate),
    ):  # fmt: skip
        found = rows(name)
        body = f"{text(found)}\n\n{provenance([{'num_threads': 1, **row} for row in found])}" if found else "Not run."
        told.append(f"## {title}\n\n{body}\n")
    return "\n".join(told)


def kill(found: list[Row]) -> str:
    lines = ["| schedule | who was killed | what it did then | trials | weights the same bits |", "|---" * 5 + "|"]
    for key in sorted({(row["schedule"], row["victim"], row["returns"]) for row in found}, key=lambda k: (not k[2], k)):
        mine = [row for row in found if (row["schedule"], row["victim"], row["returns"]) == key]
        what = "came back" if key[2] else "stayed away"
        lines.append(f"| {key[0]} | {key[1]} | {what} | {len(mine)} | {sum(row['equal'] for row in mine)} |")
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(row["seed"] for row in found))
    return (
        "A server and two clients over gRPC; one of them kills itself with SIGKILL at a step drawn from the seed. "
        "Who comes back changes no "
        "weight of the uninterrupted run; where one stays away the weights are those of a run in one process that it left at the mark "
        f"which the server went back to. Seed {seeds}; seconds a trial, median: "
        f"{statistics.median(row['seconds'] for row in found):.0f}.\n\n" + "\n".join(lines)
    )


def organisations(found: list[Row]) -> str:
    row = found[-1]
    return (
        "Three processes with folders of their own (data, certificate, marks) train the small CIFAR-10 run over gRPC with mutual TLS: "
        "ResNet-20, splitfed_v1, a server and two clients with 5,000 images each, full test set. The second client was killed at batch "
        f"{row['killed_at']} of {row['steps']} and started again: the final weights are those of the undisturbed run, bit for bit "
        f"({100 * row['accuracy']:.2f} %). {row['seconds']:.0f} s undisturbed, {row['seconds_killed']:.0f} s with the death; "
        f"{row['repeated_bytes'] / 1e6:.1f} MB were sent twice."
    )


def fuzz(found: list[Row]) -> str:
    row = found[-1]
    return (
        f"{row['seconds']:.0f} s each: {row['frames']:,} damaged or random frames to `loads`, of which "
        f"{row['refused']:,} were refused and the "
        f"others were frames that are written so; {row['connections']} connections of random bytes, greetings and "
        f"records to a server's port, "
        f"which cost {row['growth_bytes'] / 2**20:.0f} MB of memory. The run that followed on that server has the weights of one process."
    )


def throughput(found: list[Row]) -> str:
    newest = {(row["transport"], row["what"]): row for row in found}
    lines = ["| transport | what | bare medium | cutlayer | ratio | to bare into new memory |", "|---" * 6 + "|"]
    for (transport, what), row in newest.items():
        new = f"{row['ratio_new']:.2f}" if "ratio_new" in row else ""
        lines.append(
            f"| {transport} | {what} | {row['bare']:.3g} {row['unit']} | {row['ours']:.3g} | {row['ratio']:.2f} | {new} |"
        )
    return (
        "Activations one way, one message after the other; the receiver has the tensor when the clock stops. MPI against Send and Recv "
        "of one and the same buffer, which stays in the cache, and of new memory for each, which activations "
        "need; gRPC against a stream of bytes "
        "in chunks of 1 MB under the same mutual TLS. The aim was 0.8 from 1 MB on: it is reached by MPI at 8 MB into new memory, and "
        "missed elsewhere. Over MPI a message costs about 40 us of Python; over gRPC it is copied once into its chunks and once out of "
        "them, by threads that share an interpreter. Tried: no checksum where the medium has one, tensors sent from and received into "
        "the memory where they lie, one copy instead of five, copies that let other threads run, larger chunks, fewer acknowledgements, "
        "a shorter switching interval, and an allocator that keeps its memory; the last two gained nothing.\n\n"
        + "\n".join(lines)
    )


def epoch(found: list[Row]) -> str:
    transports = list(dict.fromkeys(row["transport"] for row in found))
    lines = ["| seconds an epoch | " + " | ".join(transports) + " |", "|---" * (len(transports) + 1) + "|"]
    for scheme in dict.fromkeys(row["scheme"] for row in found):
        cells = []
        for transport in transports:
            mine = [row["seconds"] for row in found if (row["scheme"], row["transport"]) == (scheme, transport)]
            cells.append(f"{statistics.median(mine):.1f} ({len(mine)})" if mine else "not run")
        lines.append(f"| {scheme} | " + " | ".join(cells) + " |")
    return (
        "ResNet-20, shallow cut, 10,000 images of CIFAR-10, bfloat16, batches of 128, one client; medians, the "
        "number of runs in brackets. In one "
        "process both sides use both cores in turn; elsewhere each side has one thread, so conventional training leaves a core idle "
        "while a decoupled client computes beside its server. Other work ran on the machine at times.\n\n" + "\n".join(lines)
    )


def calibrate(found: list[Row]) -> str:
    lines = ["| scheme | Mbit/s up, down; ms | line | predicted, s | measured, s | error |", "|---" * 6 + "|"]
    errors = []
    for row in found:
        errors.append(abs(row["predicted"] - row["measured"]) / row["measured"])
        up, down, latency = row["line"]
        lines.append(
            f"| {row['scheme']} | {up:g}, {down:g}; {latency:g} | {'netem' if row['netem'] else 'proxy'} | {row['predicted']:.2f} | "
            f"{row['measured']:.2f} | {100 * errors[-1]:.0f} % |"
        )
    return (
        "Short runs over gRPC on slow lines, from the end of the first round to that of the last; speeds of both "
        "sides are taken from a run on "
        "the bare line. The lines are a proxy that delays and paces bytes, where the kernel has no netem (the test over network "
        f"namespaces is then skipped and says so). Median error {100 * statistics.median(errors):.0f} %; the aim is 15 %.\n\n"
        + "\n".join(lines)
    )
