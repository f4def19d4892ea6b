"""The JSON files of a run's folder, held against the types that a report reads, so that a damaged one is named and not used."""

import json
from pathlib import Path
from typing import Annotated, Any, Required

import pydantic
from typing_extensions import TypedDict

from .errors import BadInput

Table = dict[str, Any]
Figures = dict[str, float | None]
Count = Annotated[int, pydantic.Field(ge=0, lt=2**63)]


class Record(TypedDict, total=False):
    """What a report reads in a line of records.jsonl; other figures are numbers."""

    round: Required[int]
    bytes: dict[str, dict[str, int]]
    seconds: Figures


class Cell(TypedDict):
    """Bytes of one role."""

    payload: int
    wire: int


class Bytes(TypedDict, total=False):
    """What a report reads of the bytes in summary.json: by direction and role, payload and wire."""

    up: dict[str, Cell]
    down: dict[str, Cell]


class Summary(TypedDict, total=False):
    """What a report reads in summary.json; None is a figure that a run does not have."""

    metric: str | None
    accuracy_final: float | None
    accuracy_last5: float | None
    accuracy_peak: float | None
    rounds: int | None
    bytes: Bytes | None
    seconds: Figures | None
    seconds_total: float | None
    simulated: Table | None
    peak_memory_bytes: Figures | None
    memory_figure: str | None
    macs_per_sample: Figures | None
    parameters: Figures | None
    class_counts: list[list[Count]] | None
    bytes_left_after_step: Figures | None
    kept_for_backward_bytes: Figures | None
    seed: int | None
    recipe: Table | None


def fits(kind: Any, found: Any) -> Table:
    """Return a table of JSON whose values are of the types of `kind` (Record, Summary); raises ValueError naming one that is not."""
    try:
        pydantic.TypeAdapter(kind).validate_python(found, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'} = {first['input']!r:.40}: {first['msg']}") from None
    return dict(found)


def json_table(path: Path) -> Table:
    """Return the table in a JSON file of a run's folder; raises BadInput naming the file if it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read ({error}); delete it, and run again into the same folder") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds {found!r:.40} and no table; delete it, and run again into the same folder")
    return found


def summary_table(path: Path) -> Table:
    """Return the figures of a summary.json; raises BadInput naming the file and the figure that is damaged."""
    found = json_table(path)
    try:
        return fits(Summary, found)
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); delete it, and run again into the same folder") from error


def record_of(line: str) -> Table:
    """Return the record in a line of records.jsonl; raises ValueError if it is none."""
    found = fits(Record, line_table(line))
    for name, value in found.items():
        if name not in ("bytes", "seconds") and not isinstance(value, int | float):
            raise ValueError(f"{name} = {value!r:.40} is no number")
    return found


def line_table(line: str) -> Table:
    """Return the table in a line of JSON; raises ValueError if it is none."""
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"{found!r:.40} is no table")
    return found
