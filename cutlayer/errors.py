"""What goes wrong, in two kinds: input to be corrected, and a run that failed."""

import difflib
import errno
from collections.abc import Iterable

from safetensors import SafetensorError

# PyTorch has an error of its own only for a GPU's memory
NO_MEMORY = ("out of memory", "can't allocate memory", "size calculation overflowed")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BadInput(ValueError):
    """Something the user gave is wrong; the message names the value and the remedy (exit code 2)."""


class Busy(BadInput):
    """Another process is at work where this one would be."""


class RunFailed(RuntimeError):
    """A run that had begun could not go on; finished rounds are kept (exit code 1)."""


class NotFinite(BadInput):
    """A client's message holds infinity or NaN."""


class Diverged(RunFailed):
    """A loss or a weight of the server is infinity or NaN."""


class Advice(UserWarning):
    """What was given works, and something else would be better; the message is one line."""


def shortage(error: BaseException) -> str | None:
    """Return in one line of what a run had too little, memory or room on the disk, or None if the error is another."""
    said = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)):
        return f"out of memory ({said}); take a smaller network, head or batch_size"
    if (isinstance(error, SafetensorError) and "I/O error" in said) or (isinstance(error, OSError) and error.errno in NO_ROOM):
        return f"a file cannot be written ({said}); make room on the disk, and the same command goes on"
    return None


def unknown(what: str, name: str, legal: Iterable[str]) -> BadInput:
    """Return the error for a name that is in no table, with the nearest legal name and all of them."""
    names = sorted(legal)
    near = difflib.get_close_matches(name, names, 1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return BadInput(f"unknown {what} {name!r}.{hint} Legal: {', '.join(names)}")
