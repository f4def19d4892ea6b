"""Finished runs -> a table, figures and findings on one HTML page that needs no network; never touches training."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .descriptors import wait_for_descriptors
from .errors import BadInput
from .findings import Finding, against, baseline, comparable, findings, found, paired
from .recipes import toml
from .report_cells import Cell, figure_cell, macs_cell, peak_cell
from .runs import APART, Group, Run, differences, groups_of, human, payload, scaled, word
from .schema import record_of, summary_table

__all__ = ["Run", "findings", "labels", "read", "rows", "write"]

CSS = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0 auto;padding:2.2rem 1.4rem 3rem;max-width:1180px;background:#fff;color:#1f2328;
font:15px/1.55 system-ui,"Helvetica Neue",Arial,sans-serif}
h1{margin:0 0 .3rem;font-size:1.7rem;letter-spacing:-.01em}
h2{margin:2.4rem 0 .7rem;padding-top:.9rem;border-top:1px solid #e3e6ea;font-size:1.15rem}
.lead{margin:0 0 1.5rem;max-width:62rem;color:#3b4048;font-size:1.05rem}.note,dl{color:#57606a;font-size:.86rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
.numbers{width:100%}th,td{padding:.42rem .6rem;border-bottom:1px solid #e3e6ea;text-align:right;vertical-align:top}
.numbers td:not(:first-child){white-space:nowrap}th{color:#57606a;font-weight:600;vertical-align:bottom}
thead th{border-bottom:2px solid #1f2328}tbody tr:last-child>*{border-bottom:2px solid #1f2328}
th:first-child,td:first-child,.recipe th,.recipe td{text-align:left}td[title]{cursor:help}
.numbers td:first-child{min-width:12rem}.recipe td{overflow-wrap:anywhere}.recipe .differs td{background:#fff6d6}
.recipe td[colspan]{color:#57606a}
.badge{display:inline-block;min-width:1.5em;margin-right:.5em;padding:0 .35em;border-radius:.3em;color:#fff;font-weight:700;
text-align:center}.keyed{display:flex;align-items:flex-start}.keyed>.badge{flex:none}
.figures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1.6rem 2rem}figure{margin:0;break-inside:avoid}
figcaption{margin-bottom:.3rem;font-weight:600}svg{display:block;width:100%;height:auto}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:1rem 0 0}dt{font-weight:600;color:#3b4048}
dd{margin:0}ul.found{margin:0;padding:0;list-style:none}
.found li{margin:.45rem 0;padding:.4rem .8rem;border-left:4px solid #D55E00;background:#fdf3ec;break-inside:avoid}
.found li.good{border-color:#009E73;background:#eef8f4}.found li.open{border-color:#8a9099;background:#f5f6f8}
.found b{margin-right:.4em}
@media screen and (max-width:760px){body{padding:1.2rem .8rem;font-size:14px}.figures{grid-template-columns:minmax(0,1fr)}
dl{display:block}dd{margin-bottom:.5rem}.numbers td:first-child{min-width:8.5rem}}
@media print{@page{size:A4 landscape;margin:12mm}body{max-width:none;padding:0;font-size:10pt}table{font-size:8pt}
th,td{padding:.25rem .35rem}.scroll{overflow:visible}h2{break-after:avoid}tr{break-inside:avoid}
*{print-color-adjust:exact}}
"""
LEGEND = (
    ("final, last 5, peak", "on the whole test set: after the last round, mean of the last five evaluations, best."),
    ("bytes up, down", "payload of tensors from and to the clients in training, without evaluation; the wire adds a frame to "
     "every message. 1 MB is 1,000,000 bytes; the exact numbers show on hovering, and by role at the end of the page."),
    ("peak memory", "live tensors of a side on one batch per round: parameters, buffers, optimizer state, and at their peak "
     "activations, gradients, temporaries and received tensors; on a GPU by its allocator. Runs of earlier versions have "
     "\"kept for backward\" instead: what autograd keeps, parameters, gradients and optimizer state. The two are not comparable."),
    ("multiply-adds", "of one sample's forward pass through all that a client holds: bottom, auxiliary head, decoder, tail."),
    ("seconds", "wall-clock time of the whole run, all parties and the evaluation on one machine."),
    ("time by phase", "seconds of forward, backward and codec by side; of parties in processes of their own also the clients' waiting, "
     "which in one process is the server's time."),
    ("simulated", "modelled, not measured: multiply-adds over speed, bits over bandwidth plus latency, with the uplink, downlink, "
     "latency, speeds and server_speed of the recipe below."),
    ("±", "mean over seeds and half-width of the 95 % Student-t interval; hover for the single seeds. "
     "In figures thick curves and bars are means, thin curves the single seeds."),
)  # fmt: skip


def read(folder: Path) -> Run:
    """Return the run in OUT/; of one that is still going, its finished rounds. Raises BadInput where there are none, or one is damaged."""
    done = (folder / "summary.json").exists()
    try:
        lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        being_written = bool(lines) and not done and not lines[-1].endswith("}")
        records = [record_of(line) for line in lines[: len(lines) - being_written]]
        recipe = toml.read(folder / "recipe.toml") if (folder / "recipe.toml").exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{folder} holds no run that can be read ({error}); give the folder of a run") from error
    if done:
        return Run(summary_table(folder / "summary.json"), records)
    if not records:
        raise BadInput(f"{folder} has no finished round yet; wait for it, or run it again into the same folder")
    return Run(_so_far(recipe, records), records)


def _so_far(recipe: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the last record knows of a summary."""
    names = [k for r in records for k in r if f"auxiliary_{k}" in r] or ["accuracy"]
    last, curve = records[-1], [r[names[0]] for r in records if names[0] in r]
    table = {way: {role: {"payload": n} for role, n in roles.items()} for way, roles in last.get("bytes", {}).items()}
    means = {"accuracy_last5": sum(curve[-5:]) / len(curve[-5:]), "accuracy_peak": max(curve)} if curve else {}
    ends = {"accuracy_final": curve[-1] if curve else None, **{k: last.get(k) for k in ("seconds", "seconds_total")}}
    return {"metric": names[0], "rounds": len(records), "bytes": table, "recipe": recipe, "unfinished": True, **means, **ends}


def labels(runs: Sequence[Run]) -> list[str]:
    """Return one short name per run from the fields in which the recipes differ; seeds of a configuration share it."""
    by_run = {id(run): group.label for group in groups_of(runs) for run in group.runs}
    return [by_run[id(run)] for run in runs]


def _metrics(groups: Sequence[Group]) -> list[str]:
    """Return the metrics that some run has a figure of, or that of the first run."""
    runs = [run for group in groups for run in group.runs]
    return list(dict.fromkeys(run.metric for run in runs if run.summary.get("accuracy_final") is not None)) or [runs[0].metric]


def _table(groups: Sequence[Group]) -> tuple[list[str], list[list[Cell]]]:
    metrics = _metrics(groups)
    name, unit = (f"{metrics[0]} ", scaled(metrics[0])[1]) if len(metrics) == 1 else ("", "")
    header = ["run", "seeds", *(f"{name}{when}{unit}" for when in ("final", "last 5", "peak")), "bytes up", "bytes down"]
    header += ["client peak memory", "server peak memory", "client multiply-adds / sample", "seconds"]
    clocked = any(run.summary.get("simulated") for group in groups for run in group.runs)
    header += ["simulated seconds"] if clocked else []

    def part(name: str, key: str) -> Callable[[Run], float | None]:
        return lambda run: (run.summary.get(name) or {}).get(key) or None

    table = []
    for group in groups:
        seeds, runs = [str(run.summary.get("seed", "-")) for run in group.runs], group.runs
        unfinished = ", ".join(f"{r.summary['rounds']} rounds so far" for r in runs if r.summary.get("unfinished"))
        row = [Cell(group.label, unfinished), Cell(str(len(seeds)), f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")]
        scale, unit, digits = scaled(runs[0].metric)
        for when in ("final", "last5", "peak"):
            value = lambda run, key=f"accuracy_{when}": run.summary.get(key)  # noqa: E731
            cell = figure_cell(runs, value, lambda v, s=scale, d=digits: f"{s * v:.{d}f}", "{:.6g}")  # type: ignore[misc]
            row.append(cell._replace(text=f"{runs[0].metric} {cell.text}{unit}") if len(metrics) > 1 and cell.exact else cell)
        for way in ("up", "down"):
            row.append(figure_cell(runs, lambda run, way=way: payload(run, way), human, "{:,} bytes"))  # type: ignore[misc]
        for side in ("client", "server"):
            row.append(peak_cell(runs, side, len({run.memory_figure for each in groups for run in each.runs}) > 1))
        row.append(macs_cell(runs))
        row.append(figure_cell(runs, lambda run: run.summary.get("seconds_total"), lambda v: f"{v:,.1f}", "{:.3f} s"))
        if clocked:
            row.append(figure_cell(runs, part("simulated", "seconds"), lambda v: f"{v:,.1f}", "{:.6f} simulated s"))
        table.append(row)
    return header, table


def rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the comparison, one per configuration, as text (accuracies in %, bytes with a prefix).

    With several seeds a cell is the mean +- the half-width of the 95 % Student-t interval. Raises BadInput without runs.
    """
    _some(runs)
    header, table = _table(groups_of(runs))
    return header, [[cell.text for cell in row] for row in table]


def _some(runs: Sequence[Run]) -> None:
    if not runs:
        raise BadInput("no runs to report; give at least one run's folder")


@wait_for_descriptors
def write(runs: Sequence[Run], path: Path, title: str = "cutlayer") -> Path:
    """Write one self-contained HTML page about the runs and return its path; raises BadInput without runs."""
    from .figures import draw  # the drawing library takes half a second to load, which a table does not need

    _some(runs)
    groups, name = groups_of(runs), escape(title)
    drawn = {title: svg for metric in _metrics(groups) for title, svg in draw(groups, metric)}
    figures = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in drawn.items())
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{CSS}</style>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head><body>',
        f'<h1>{name}</h1><p class="lead">{escape(_sentence(groups))}</p>{_numbers(groups)}',
        "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in LEGEND) + "</dl>",
        f'<h2>Figures</h2><div class="figures">{figures}</div><h2>Findings</h2>{_said(groups)}',
        f"<h2>Recipes and exact bytes</h2>{_recipes(groups)}</body></html>\n",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(parts), encoding="utf-8")
    return path


def _sentence(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    fields = differences(runs)

    def shared(name: str) -> str | None:
        return None if name in fields or runs[0].recipe.get(name) is None else word(runs[0].recipe[name])

    count = f"{len(groups)} configurations" if len(groups) > 1 else groups[0].label
    seeds = f"{len(runs)} runs of " if len(runs) > len(groups) else ""
    model = f"{shared('model') or 'networks'} cut at {shared('cut') or 'several places'}, on "
    model += shared("data") or "several data sets"
    clients, who = shared("num_clients"), ""
    if clients:
        spread = f" ({shared('partition')})" if clients != "1" and shared("partition") else ""
        who = f", {clients} client{'s' * (clients != '1')}{spread}"
    length = f", {n} rounds" if (n := shared("rounds")) else ""
    differ = f"; they differ in {' and '.join(filter(None, (', '.join(fields[:-1]), fields[-1])))}" if fields else ""
    return f"{seeds}{count}: {model}{who}{length}{differ}."


def _badge(group: Group) -> str:
    from .figures import colour

    return f'<span class="badge" style="background:{colour(group)}">{group.letter}</span>' if group.letter else ""


def _numbers(groups: Sequence[Group]) -> str:
    header, table = _table(groups)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for group, row in zip(groups, table, strict=True):
        cells = [
            f'<td title="{escape(cell.exact)}">{escape(cell.text)}</td>' if cell.exact else f"<td>{escape(cell.text)}</td>"
            for cell in row
        ]
        name = ": ".join(filter(None, row[0]))
        cells[0] = f'<td><div class="keyed">{_badge(group)}<span>{escape(name)}</span></div></td>'
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return _framed("numbers", head, lines)


def _framed(kind: str, head: str, lines: Sequence[str]) -> str:
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def _said(groups: Sequence[Group]) -> str:
    """Return the findings, each once per configuration with the number of seeds that show it."""
    runs, items = [run for group in groups for run in group.runs], []
    owner = {id(run): group for group in groups for run in group.runs}
    names = {group.number: f"{group.letter} ({group.label})" for group in groups}
    for group in groups:
        seen: dict[str, list[Finding]] = {}
        for run in group.runs:
            other = baseline(run, runs)
            for finding in [*found(run), *(against(run, other, names[owner[id(other)].number]) if other else [])]:
                seen.setdefault(finding.kind, []).append(finding)
        first = groups[0] if comparable(group.runs[0], groups[0].runs[0]) else group
        beside = owner[id(other)] if (other := baseline(group.runs[0], runs)) else first
        gap = paired(group.runs, beside.runs, names[beside.number]) if beside is not group else None
        for finding, count in [*((several[0], len(several)) for several in seen.values()), *([(gap, 0)] if gap else [])]:
            often = f" ({count} of {len(group.runs)} seeds; numbers of the first.)" if count and len(group.runs) > 1 else ""
            kind, mark = {True: ("good", "✓"), False: ("trouble", "▲"), None: ("open", "•")}[finding.good]
            items.append(f'<li class="{kind}"><b>{mark}</b>{_badge(group)}{escape(finding.text + often)}</li>')
    nothing = '<p class="note">None of the known signatures of failure was seen.</p>'
    return f'<ul class="found">{"".join(items)}</ul>' if items else nothing


def _recipes(groups: Sequence[Group]) -> str:
    """Return every field by configuration, the differing ones first and marked, then where the runs come from."""
    runs = [group.runs[0] for group in groups]
    fields = differences([run for group in groups for run in group.runs])
    every = dict.fromkeys(k for run in runs for k in run.recipe if k not in (*fields, "seed"))
    lines = []
    for name in [*fields, *every]:
        values = [word(run.recipe[name]) if name in run.recipe else "-" for run in runs]
        if name not in APART or set(values) - {"", "none", "-"}:
            lines.append(_line(name, values, name in fields or (name == "scheme" and len(set(values)) > 1)))
    lines.append(_line("seed", [", ".join(str(run.recipe.get("seed", "-")) for run in group.runs) for group in groups]))
    for name in ("release", "samples", "parameters", "commit", "versions", "machine", "digest"):
        seen = [dict.fromkeys(_flat(run.summary.get(name)) for run in group.runs) for group in groups]
        lines.append(_line(name if name != "release" else "release of the data", ["; ".join(values) for values in seen]))
    for way in ("up", "down"):
        for kind in ("payload", "wire"):
            tables = [(run.summary.get("bytes") or {}).get(way) or {} for run in runs]
            known = [{role: n[kind] for role, n in table.items() if n.get(kind)} for table in tables]
            seed = " of the first seed" if any(len(group.runs) > 1 for group in groups) else ""
            lines.append(_line(f"{kind} {way}, bytes{seed}", [_flat(table) for table in known]))
    head = "".join(f'<th scope="col">{_badge(group)}{escape(group.label)}</th>' for group in groups)
    return _framed("recipe", f"<th>field</th>{head}", lines)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        known = {key: f"{item:,}" if isinstance(item, int) else str(item) for key, item in value.items() if item is not None}
        return ", ".join(f"{key} {item}" for key, item in known.items()) or "-"
    return ", ".join(f"{n:,}" for n in value) if isinstance(value, list) else str(value or "-")


def _line(name: str, values: list[str], differs: bool = False) -> str:
    cells = "".join(f"<td>{escape(value)}</td>" for value in values)
    if len(set(values)) == 1 and len(values) > 1:
        cells = f'<td colspan="{len(values)}">{escape(values[0])}</td>'
    return f'<tr{" class=differs" * differs}><th scope="row">{escape(name)}</th>{cells}</tr>'
