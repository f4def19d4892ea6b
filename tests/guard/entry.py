"""The command line of the cutlayer that can be imported here, found as its own pyproject.toml names it."""

import importlib
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with `argv` in place of sys.argv[1:], and return its exit code."""
    import cutlayer

    sys.argv[1:] = sys.argv[1:] if argv is None else argv

    project = tomllib.loads((Path(cutlayer.__file__).parent.parent / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["cutlayer"].partition(":")
    code: int = getattr(importlib.import_module(module), function)()
    return code


if __name__ == "__main__":
    sys.exit(main())
