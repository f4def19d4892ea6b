"""Write docs/results.md: scripts/results.md, each of whose {{ names }} gives way to a table of rows of benchmarks/results.

A figure that is not drawn is left out; a test asks that the page is up to date.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # the cells

import result_forms as forms
import transport_forms as transports
from budget import LEVELS
from columns import (
    BYTES,
    COST,
    DIFFERENCE,
    EXITS,
    FEWER,
    FINAL,
    FINAL_DIFFERENCE,
    HOLDING,
    LAST5,
    LEAKS,
    LESS,
    MEMORY,
    PEAK,
    PER_CLIENT,
    SECONDS,
    SEPARATED,
    SIMULATED,
    STATES,
    WHOLE,
    WITHIN,
    Column,
    until,
)  # fmt: skip
from result_rows import Row, finished, partition_versions, provenance
from rows import read

from cutlayer.errors import BadInput

ACCURACY = FINAL | LAST5 | PEAK
TABLES: dict[str, dict[str, Column]] = {
    "parity": FINAL | FINAL_DIFFERENCE | WITHIN | LAST5 | DIFFERENCE | PEAK | BYTES | FEWER | COST | MEMORY,
    "heads": FINAL | FINAL_DIFFERENCE | LAST5 | DIFFERENCE | PEAK | BYTES | FEWER | COST | MEMORY | WHOLE,
    "exits": FINAL | EXITS | COST,
    "choices": ACCURACY | DIFFERENCE | COST | MEMORY | BYTES,
    "schemes": ACCURACY | BYTES | SIMULATED | HOLDING,
    "decoupled": ACCURACY | DIFFERENCE | BYTES | PER_CLIENT | COST | MEMORY | WHOLE | SECONDS,
    "authors": ACCURACY | DIFFERENCE | COST | MEMORY | WHOLE,
    "leakage": FINAL | LEAKS | BYTES,
    "loss_threshold": STATES | ACCURACY | SEPARATED | FEWER | LESS,
    "asynchronous": STATES | ACCURACY | DIFFERENCE | FEWER | LESS | BYTES | HOLDING,
    "budget": ACCURACY | {f"until {100 * level:.0f} %": until(level) for level in LEVELS} | HOLDING,
    "modalities": ACCURACY | BYTES | HOLDING,
}
FORMS: dict[str, Callable[[Sequence[Row]], str]] = {
    **{name: partial(forms.listed, name, columns) for name, columns in TABLES.items()},
    "parity": lambda found: (
        forms.listed("parity", TABLES["parity"], found) + forms.on_both("parity", FINAL_DIFFERENCE | WITHIN | DIFFERENCE, found)
    ),
    "heads": lambda found: "\n\n".join(
        [forms.listed("heads", TABLES["heads"], found), forms.beside(found, finished("schemes"))]
    ),
    **{
        name: getattr(forms, name)
        for name in ("slperf", "clients", "graphs", "larger", "latency", "memory", "overhead", "overlap")
    },
    **{
        name: getattr(transports, name)
        for name in ("kill", "hostile", "organisations", "fuzz", "throughput", "epoch", "calibrate")
    },
}


def table(name: str) -> str:
    """Return the table of a file of rows and where they are from."""
    if not (found := read(name)):
        return f"Not run: `python benchmarks/{name}.py`."
    rows = f"../benchmarks/results/{name}.jsonl"
    text = "\n\n".join(filter(None, (FORMS[name](found), partition_versions(found))))
    return re.sub(r"\bL(\d+)\b", rf"[L\1]({rows}#L\1)", text) + f"\n\n{provenance(name, found)}"


def page() -> str:
    """Return the page."""
    text = (ROOT / "scripts" / "results.md").read_text()
    text = re.sub(r"!\[.*\]\((.*)\)\n\n", lambda found: found[0] if (ROOT / "docs" / found[1]).exists() else "", text)
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: table(found[1]), text)


if __name__ == "__main__":
    try:
        (ROOT / "docs" / "results.md").write_text(page())
    except BadInput as error:
        sys.exit(f"results_page.py: {error}")
    print("wrote docs/results.md", file=sys.stderr)
