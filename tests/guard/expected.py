"""Bytes, message order and record names of the cases in one process, which no processor changes; expected.json holds them.

`python tests/guard/expected.py` writes the file anew; a change needs a row in CHANGES.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("expected.json")


def observe(fields: dict[str, Any]) -> dict[str, Any]:
    """Run a recipe in this process and return its bytes by role, the order of its messages, and the names in its records."""
    from cutlayer import run_recipe
    from cutlayer.outputs import Outputs
    from cutlayer.recipes.recipe import make

    order: list[str] = []
    without_tap = Outputs.tap
    Outputs.tap = lambda self: lambda way, packed: order.append(_named(way, packed))  # type: ignore[method-assign, assignment]
    try:
        result = run_recipe(make(fields))
    finally:
        Outputs.tap = without_tap  # type: ignore[method-assign]
    table = result.summary["bytes"]
    return {
        "bytes": {
            f"{way}/{role}": [cell["payload"], cell["wire"]] for way in ("up", "down") for role, cell in table[way].items()
        },
        "messages": " ".join(order),
        "records": sorted({name for record in result.records for name in record}),
    }


def _named(way: str, packed: Any) -> str:
    return f"{packed.message.client}{'>' if way == 'up' else '<'}{packed.message.kind}"


def main() -> None:
    """Write expected.json from the present version."""
    from cases import BASE, CASES

    lines = {
        name: json.dumps(observe({**BASE, **case.fields})) for name, case in CASES.items() if case.transport == "inprocess"
    }
    FILE.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {line}" for name, line in lines.items()) + "\n}\n")
    print(f"wrote {FILE}", file=sys.stderr)


if __name__ == "__main__":
    main()
