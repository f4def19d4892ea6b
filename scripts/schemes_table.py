"""Write docs/scheme-table.md from the table of schemes; a test asks that it is up to date."""

import sys
from pathlib import Path

from cutlayer.recipes.schemes import SCHEMES

HEAD = """# The schemes

`cutlayer list schemes` prints the same. A scheme stands for its fields; any flag overrides one of them. Which one to take:
[choose a scheme](schemes.md).
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, row in SCHEMES.items():
        fields = ", ".join(f"`{field} = {'none' if value is None else value}`" for field, value in row.fields.items())
        lines = [f"- **Who sends what**: {row.sends}.", f"- **Who updates when**: {row.order}.", f"- **From**: {row.paper}."]
        lines += [f"- **Where code differs**: {row.differs}."] if row.differs else []
        parts.append("\n".join([f"## `{name}`\n", *lines, f"- **Fields**: {fields}."]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "docs" / "scheme-table.md"
    target.write_text(page())
    print(f"wrote {target}", file=sys.stderr)
