"""What goes wrong, in two kinds: input to be corrected, and a run that failed."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """Something the user gave is wrong; the message names the value and the remedy (exit code 2)."""


class RunFailed(RuntimeError):
    """A run that had begun could not go on; finished rounds are kept (exit code 1)."""


class Advice(UserWarning):
    """What was given works, and something else would be better; the message is one line."""


def unknown(what: str, name: str, legal: Iterable[str]) -> BadInput:
    """Return the error for a name that is in no table, with the nearest legal name and all of them."""
    names = sorted(legal)
    near = difflib.get_close_matches(name, names, 1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BadInput(f"unknown {what} {name!r}.{hint} Legal: {', '.join(names)}")
