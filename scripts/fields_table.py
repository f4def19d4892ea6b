"""Write docs/recipes.md from the recipe's own help texts; a test asks that it is up to date."""

import dataclasses
import sys
from pathlib import Path

from cutlayer.methods import METHODS
from cutlayer.recipes import RECIPES, Recipe
from cutlayer.recipes.options import help_of, method_class, schedule_class
from cutlayer.recipes.recipe import make
from cutlayer.recipes.toml import to_toml
from cutlayer.schedules import SCHEDULES

HEAD = """# Recipes and their fields

A recipe is all fields of a run, flat. A field, its flag (`--num-clients`) and its Python argument (`num_clients`) have one name. A recipe
file is flat TOML with these names; `cutlayer show RECIPE` prints one. Unknown or ill-typed fields are refused with the nearest valid name.

## Named recipes

| recipe | what it is |
|---|---|
"""


def _row(name: str, value: object, text: str) -> str:
    default = to_toml({name: value}).strip().partition(" = ")[2]
    return f"| `{name}` | {f'`{default}`' if default else ''} | {text.replace('|', ',')} |"


def page() -> str:
    """Return the page."""
    lines = [HEAD + "\n".join(f"| `{name}` | {row.line} |" for name, row in RECIPES.items())]
    lines.append("\n## Fields\n\n| field | default | meaning |\n|---|---|---|")
    defaults = make({}).flat()
    lines += [_row(name, defaults[name], text) for name, text in help_of(Recipe).items()]
    for kind, table, options_of in (
        ("method", METHODS, lambda name: method_class(name).Options), ("schedule", SCHEDULES, lambda name: schedule_class(name).Options),
    ):  # fmt: skip
        for name, row in table.items():
            lines.append(f"\n## Options of {kind} `{name}`\n\n{row.line[0].upper() + row.line[1:]}.\n")
            options = options_of(name)
            texts = help_of(options)
            if texts:
                lines.append("| option | default | meaning |\n|---|---|---|")
                lines += [_row(field.name, field.default, texts[field.name]) for field in dataclasses.fields(options)]
            else:
                lines.append("It has none.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
    target.write_text(page())
    print(f"wrote {target}", file=sys.stderr)
