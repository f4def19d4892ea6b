"""Results of a played case, and the differences between two of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

KINDS = ("weights", "records", "payload", "wire", "summary", "failure")
FIGURES = (
    "metric", "accuracy_final", "accuracy_last5", "accuracy_peak", "rounds", "input_bytes", "simulated", "macs_per_sample",
    "parameters", "num_clients", "samples", "left_out", "class_counts",
)  # fmt: skip
TIMES = ("seconds", "seconds_total")


class Outcome(NamedTuple):
    """Everything of a run that two versions must agree on; recipe, digest, versions, times, memory and paths are left out."""

    weights: Mapping[str, Tensor]  # by <party>/<module>.<parameter>
    records: list[dict[str, Any]]  # one a round
    payload: dict[str, int]  # by <direction>/<role>
    wire: dict[str, int]  # by <direction>/<role> and client/<name>
    summary: dict[str, Any]
    failure: str | None = None


def read(out: Path, name: str) -> Outcome:
    """Return the outcome of case `name` that was played into `out`."""
    failure = json.loads((out / f"{name}.done").read_text())
    if failure is not None:
        return Outcome({}, [], {}, {}, {}, failure)
    folder = out / name
    weights = {
        f"{path.parent.parent.name.removeprefix(name)}/{path.stem}.{parameter}": tensor
        for path in sorted(out.glob(f"{name}*/weights/*.safetensors"))
        if path.parent.parent.name in (name, *(f"{name}-client{k}" for k in range(8)))
        for parameter, tensor in load_file(path).items()
    }
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    table = summary["bytes"]
    cells = {f"{way}/{role}": cell for way in ("up", "down") for role, cell in table[way].items()}
    wire = {role: cell["wire"] for role, cell in cells.items()} | {f"client/{k}": n for k, n in table["client"].items()}
    return Outcome(
        weights,
        [{key: value for key, value in record.items() if key not in TIMES} for record in records],
        {role: cell["payload"] for role, cell in cells.items()},
        wire,
        {key: summary[key] for key in FIGURES},
    )


def differences(old: Outcome, new: Outcome) -> dict[str, str]:
    """Return, by kind, the first difference between two outcomes in words; empty if they are equal bit for bit."""
    if old.failure or new.failure:
        same = old.failure == new.failure
        return {} if same else {"failure": f"{old.failure or 'finished'} -> {new.failure or 'finished'}"}
    found = {
        "weights": _first(old.weights, new.weights),
        "records": _first(_flat(old.records), _flat(new.records)),
        "payload": _first(old.payload, new.payload),
        "wire": _first(old.wire, new.wire),
        "summary": _first(old.summary, new.summary),
    }
    return {kind: words for kind, words in found.items() if words}


def _flat(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {f"round {i}: {key}": value for i, record in enumerate(records) for key, value in record.items()}


def _first(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the first difference between two tables in words, or an empty string."""
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in old or key not in new:
            return f"{key} only in {'the new' if key in new else 'the old'} one"
        if not _equal(old[key], new[key]):
            return f"{key}: {_shown(old[key])} -> {_shown(new[key])}"
    return ""


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return old.dtype == new.dtype and old.shape == new.shape and bool(torch.equal(_bits(old), _bits(new)))
    return repr(old) == repr(new)  # a NaN equals a NaN


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _shown(value: Any) -> str:
    return (
        f"{value.dtype} {tuple(value.shape)} sum {float(value.double().sum()):.9g}" if isinstance(value, Tensor) else str(value)
    )
