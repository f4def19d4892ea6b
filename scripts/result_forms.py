"""Forms of tables: what docs/results.md shows of the rows of a file."""

from collections.abc import Mapping, Sequence
from statistics import median

from cells import Cell, of, plateau, reached
from columns import BYTES, HOLDING, Column, Pair, accuracy, holding, measured, peak, size
from larger import IMAGENET
from result_rows import Row, newest, on_gpu, table, training_bytes
from rows import labelled
from slperf import TARGETS, cells as slperf_cells

from cutlayer.recipes import load


def listed(name: str, columns: Mapping[str, Column], found: Sequence[Row]) -> str:
    """Return a line for each cell: its labels, its columns over the seeds, and the lines of its rows; and what was not run."""
    (_, small), *others = of(name).items()
    begun = {profile: any(labelled(row, cell.labels) for row in found for cell in mine) for profile, mine in others}
    cells = [*small, *(cell for profile, mine in others if begun[profile] for cell in mine)]
    heads = [*cells[0].labels, *columns, "rows"]
    lines, missing = list[list[object]](), list[list[str]]()
    for cell in cells:
        newest_of = _newest_of(cell, found)
        if not newest_of:
            missing.append([str(value) for value in cell.labels.values()])
        for gpu in sorted({gpu for gpu, _ in newest_of}):
            mine = [each for (on, _), each in newest_of.items() if on == gpu]
            done = [(row, conventional(row, cell, found)) for _, row in mine if "failed" not in row]
            failed = next((row["failed"].partition(";")[0] for _, row in mine if "failed" in row), "")
            values = [column(done) for column in columns.values()] if done else [failed, *[""] * (len(columns) - 1)]
            where = ", ".join(line(i, row, cell, found) for i, row in mine)
            lines.append([*cell.labels.values(), *values, where + " on a GPU" * gpu])
    whole = "".join(
        f"\n\nNot run: all {len(mine)} cells of `--profile {profile}`." for profile, mine in others if not begun[profile]
    )
    return table(heads, lines) + absent(name, missing, len(cells)) + whole


def _newest_of(cell: Cell, found: Sequence[Row]) -> dict[tuple[bool, int], tuple[int, Row]]:
    """Return a cell's newest row of each device and seed, and its line."""
    return {(on_gpu(row), row["seed"]): (i, row) for i, row in enumerate(found, 1) if labelled(row, cell.labels)}


def paired(cell: Cell, found: Sequence[Row]) -> list[Pair]:
    """Return a cell's newest runs of each device and seed beside their conventional ones, without those that have none."""
    done = [row for _, row in _newest_of(cell, found).values() if "failed" not in row]
    return [(row, base) for row in done if (base := conventional(row, cell, found)) not in (None, row)]


def on_both(name: str, columns: Mapping[str, Column], found: Sequence[Row]) -> str:
    """Return a line for each cell with pairs on a processor and on a GPU, what they say together, or nothing if there is none."""
    lines = list[list[object]]()
    for cell in (cells := next(iter(of(name).values()))):
        pairs = paired(cell, found)
        if len({on_gpu(row) for row, _ in pairs}) > 1:
            seeds = len({row["seed"] for row, _ in pairs})
            lines.append([*cell.labels.values(), seeds, *(column(pairs) for column in columns.values())])
    heads = [*cells[0].labels, "seeds", *columns]
    told = (
        "Where there are pairs on a GPU and on a processor, all of them together; of a seed that ran on both the mean counts:"
    )
    return f"\n\n{told}\n\n{table(heads, lines)}" if lines else ""


def line(number: int, row: Row, cell: Cell, found: Sequence[Row] = ()) -> str:
    """Return where a row is, and where that is not its cell's its arithmetic, and the conventional run in it."""
    own = row.get("recipe", {}).get("precision")
    if own in (None, load(cell.base, **cell.fields).precision):
        return f"L{number}"
    base = conventional(row, cell, found)
    return f"L{number} in {own}" + (f" against L{found.index(base) + 1}" if base and base is not row else "")


def absent(name: str, missing: Sequence[Sequence[str]], wanted: int) -> str:
    """Return what is said of cells without rows, together where they differ in their last label alone, or in all others."""
    if not missing:
        return ""
    last: dict[str, list[str]] = {}
    for *most, one in missing:
        last.setdefault(", ".join(most), []).append(one)
    where: dict[str, list[str]] = {}
    for most, ones in last.items():
        where.setdefault("; ".join(ones), []).append(most)
    lines = "".join("\n- " + ": ".join(filter(None, ("; ".join(most), ones))) for ones, most in where.items())
    return f"\n\nNot run: {len(missing)} of {wanted} cells; `python benchmarks/{name}.py` runs them.\n{lines}"


def conventional(row: Row, cell: Cell, found: Sequence[Row]) -> Row | None:
    """Return the conventional run of a row's seed, precision and device, which is the same for all cuts."""
    own = {key: value for key, value in cell.labels.items() if key not in ("what", "configuration", "cut")}
    return next(
        (
            other
            for other in reversed(found)
            if "failed" not in other
            and "conventional" in (other.get("what"), other.get("configuration"))
            and labelled(other, {**own, "seed": row["seed"]})
            and other["recipe"]["precision"] == row["recipe"]["precision"]
            and on_gpu(other) == on_gpu(row)
        ),
        None,
    )


def beside(found: Sequence[Row], averaged: Sequence[Row]) -> str:
    """Return what bytes at the cut are to be seen beside: the raw inputs, once, and FedAvg of the uncut network."""
    one = next((row for row in reversed(found) if "failed" not in row), None)
    if one is None:
        return ""
    raw, rounds = one["input_bytes"], one["rounds"]
    text = f"The raw inputs of {sum(one['samples']):,} images are {size(raw)}, once"
    fed = next((row for row in averaged if row["scheme"] == "fedavg" and row["rounds"] == rounds), None)
    if fed is None:
        return f"{text}."
    ways = " and ".join(f"{size(training_bytes(fed, way))} {way}" for way in ("up", "down"))
    return f"{text}; FedAvg of the uncut network sends {ways} in {rounds} rounds of {fed['num_clients']} clients."


def slperf(found: Sequence[Row]) -> str:
    """Return a line for each task and scheme, with the final and last five accuracies and the line of the row for every partition."""
    cells = {tuple(cell.labels[key] for key in ("task", "what", "partition")): cell for cell in slperf_cells()}
    partitions = list(dict.fromkeys(partition for _, _, partition in cells))
    there = newest(found, "task", "what", "partition")
    heads = ["task", "what", *(f"{partition}, %" for partition in partitions), "up / down", "seconds", *HOLDING]
    lines = []
    for task, what in dict.fromkeys(cell[:2] for cell in cells):
        values = [_cell(cells.get((task, what, p)), *there.get((task, what, p), ())) for p in partitions]
        done = [there[task, what, p][1] for p in partitions if (task, what, p) in there]
        row = next((row for row in done if "failed" not in row), None)
        costs = [BYTES["up / down"]([(row, None)]), f"{row['seconds_total']:.0f}", holding(row)] if row else [""] * 3
        lines.append([task, what, *values, *costs])
    missing = [cell for cell in cells if cell not in there]
    aims = ", ".join(f"{task} {100 * level:.0f} %" for task, level in TARGETS.items())
    return table(heads, lines) + f"\n\nTargets: {aims}." + absent("slperf", missing, len(cells))


def _cell(cell: Cell | None, number: int = 0, row: Row | None = None) -> str:
    if cell is None or row is None:
        return "not run" if cell else ""
    where = line(number, row, cell)
    if "failed" in row:
        return f"failed {where}"
    r = reached(row["curve"], TARGETS[row["task"]])
    sent = f": {size(row['traffic'][r - 1])}" if r and "traffic" in row else ""
    rounds = f"{r or '-'}{sent}, {plateau(row['curve'])}"
    drift = f", drift {row['client_drift']:.3f}" if row.get("client_drift") is not None else ""
    return f"{accuracy(row['accuracy_final'])}, {accuracy(row['accuracy_last5'])} ({rounds}{drift}) {where}"


def clients(found: Sequence[Row]) -> str:
    """Return seconds a round and the server's memory by transport, scheme and number of clients."""
    there = {key: row | {"line": i} for key, (i, row) in newest(found, "transport", "scheme", "clients").items()}
    numbers = sorted({n for _, _, n in there})
    heads = ["transport", "scheme", *(f"{n} client{'s' * (n > 1)}" for n in numbers)]
    lines = []
    for transport, scheme in dict.fromkeys((t, s) for t, s, _ in there):
        rows = [there.get((transport, scheme, n)) for n in numbers]
        values = [
            f"{row['seconds']:.1f} s, {measured(row, size(row['server_bytes']))} L{row['line']}" if row else "not run"
            for row in rows
        ]
        lines.append([transport, scheme, *values])
    pairs = [(row, there.get(("inprocess", *key[1:]))) for key, row in there.items() if key[0] != "inprocess"]
    same = [row["accuracy"] == other["accuracy"] for row, other in pairs if other]
    arithmetic = " and ".join(sorted({row["precision"] for row in there.values()}))
    return (
        table(heads, lines) + f"\n\nIn {arithmetic}. The accuracy is that of one process in {sum(same)} of {len(same)} cells."
    )


def graphs(found: Sequence[Row]) -> str:
    """Return seconds a round of every scheme on every graph set in one process and under MPI, and whether accuracies are the same."""
    there = {key: row | {"line": i} for key, (i, row) in newest(found, "set", "scheme", "transport").items()}
    pairs = {key[:2]: [there.get((*key[:2], transport)) for transport in ("inprocess", "mpi")] for key in there}
    schemes = list(dict.fromkeys(scheme for _, scheme in pairs))
    lines = []
    for name in dict.fromkeys(name for name, _ in pairs):
        shown = [
            [f"{row['seconds']:.2f} L{row['line']}" if row else "not run" for row in pairs.get((name, s), [None] * 2)]
            for s in schemes
        ]
        lines.append([name, *map(" / ".join, shown)])
    same = [one["accuracy"] == mpi["accuracy"] for one, mpi in pairs.values() if one and mpi]
    return (
        table(["s a round, in one process / MPI", *schemes], lines)
        + f"\n\nThe accuracy under MPI is that of one process in {sum(same)} of {len(same)} cells."
    )


def larger(found: Sequence[Row]) -> str:
    """Return what an epoch of ImageNet costs at each cut."""
    lines = []
    for number, row in newest(found, "cut", "what").values():
        sent = " / ".join(size(row["epoch_bytes"].get(way, 0)) for way in ("up", "down"))
        server = row["macs_per_sample"]["top"]
        macs = " / ".join(f"{part / 1e9:.2f} G" for part in (sum(row["macs_per_sample"].values()) - server, server))
        held = f"{peak(row, 'client', 'server')}, {row['batch_size']}"
        batch = row["seconds_per_batch"]
        hours = IMAGENET / row["batch_size"] * batch / 3600
        lines.append([row["cut"], row["what"], sent, macs, held, f"{batch:.1f}", f"{hours:.0f}", f"L{number}"])
    heads = ["cut", "method", "up / down an epoch", "forward multiply-adds of client / server"]
    return table([*heads, "peak at client / server, batch", "s a batch here", "hours an epoch here", "row"], lines)


def latency(found: Sequence[Row]) -> str:
    """Return where the milliseconds of a batch go, medians over repeats, and both sides' beside the conventional ones of a repeat."""
    there = {key: (row["ms_per_batch"], i) for key, (i, row) in newest(found, "cut", "what", "repeat").items()}
    lines = []
    for cut, what in dict.fromkeys(key[:2] for key in there):
        mine = {key[2]: ms for key, (ms, _) in there.items() if key[:2] == (cut, what)}
        sides = [
            " + ".join(f"{median(ms[f'{side}_{way}'] for ms in mine.values()):.0f}" for way in ("forward", "backward"))
            for side in ("client", "server")
        ]
        both = {repeat: sum(ms.values()) for repeat, ms in mine.items()}
        base = {key[2]: sum(ms.values()) for key, (ms, _) in there.items() if key[:2] == (cut, "conventional")}
        ratios = [both[repeat] / base[repeat] for repeat in both if repeat in base and what != "conventional"]
        beside = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        where = ", ".join(f"L{i}" for key, (_, i) in there.items() if key[:2] == (cut, what))
        spent = [f"{median(values):.1f}" for values in ([ms["codec"] for ms in mine.values()], both.values())]
        lines.append([cut, what, *sides, *spent, beside, where])
    heads = [
        "cut",
        "what",
        "client, forward + backward",
        "server, forward + backward",
        "codec",
        "both",
        "against conventional",
        "rows",
    ]
    return table(heads, lines)


def memory(found: Sequence[Row]) -> str:
    """Return both figures of memory of each configuration, and their ratios to the conventional client."""
    there = newest(found, "configuration")
    base = there.get(("conventional",), (0, None))[1]
    lines = []
    for (configuration,), (number, row) in there.items():
        kept, live = row["kept_for_backward_bytes"], row["peak_memory_bytes"]
        ratio = f"{live['client'] / base['peak_memory_bytes']['client']:.2f}" if base else ""
        lines.append([configuration, size(live["client"]), ratio, size(kept["client"]), size(live["server"]), f"L{number}"])
    heads = [
        "configuration",
        "client, live tensors",
        "to conventional",
        "client, kept for backward",
        "server, live tensors",
        "row",
    ]
    return table(heads, lines)


def overhead(found: Sequence[Row]) -> str:
    """Return what the package costs over raw PyTorch."""
    lines = []
    for (method,), (number, row) in newest(found, "method").items():
        low, high = row["interval_95"]
        ms = row["ms_per_step"]
        ratio, both = f"{row['median_ratio']:.3f}", [f"{ms[who]:.1f}" for who in ("package", "twin")]
        lines.append([f"`{method}`", ratio, f"{low:.3f} to {high:.3f}", *both, f"L{number}"])
    heads = ["method", "package / twin, median", "95 % interval", "ms a step, package", "ms a step, twin", "row"]
    return table(heads, lines)


def overlap(rows: Sequence[Row]) -> str:
    """Return what a client saves that waits for nobody."""
    found = {cut: row | {"line": i} for (cut,), (i, row) in newest(rows, "cut").items()}
    cuts = [f"{cut} L{row['line']}" for cut, row in found.items()]
    names = dict.fromkeys(name for row in found.values() for name in row["ms_per_batch"])
    times = [[name, *(f"{row['ms_per_batch'][name]:.0f}" for row in found.values())] for name in names]
    ratios = []
    for head, at in next(iter(found.values()))["ratio"].items():
        ratios += [
            [
                f"{head}, {'at' if each.endswith('ms') else 'beside'} {each}",
                *(f"{row['ratio'][head][each]:.2f}" for row in found.values()),
            ]
            for each in at
        ]
        ratios.append([f"{head}, slower side over both in turn", *(f"{row['bound'][head]:.2f}" for row in found.values())])
    return (
        table(["ms for a batch of 128", *cuts], times) + "\n\n" + table(["decoupled over the best conventional", *cuts], ratios)
    )
