"""File descriptors: the limit of this process, and file operations that wait while no descriptor is free."""

import errno
import functools
import os
import resource
import time
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .errors import Advice

P = ParamSpec("P")
R = TypeVar("R")
PAUSE_S = 0.5
PATIENCE_S = 600.0
EXHAUSTED = (errno.EMFILE, errno.ENFILE)  # too many open files, of this process or of the machine


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard limit, and return the limit that holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS allows less than its hard limit says
            return soft
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def count_open_descriptors() -> int:
    """Return how many descriptors this process holds now."""
    return len(os.listdir("/dev/fd"))


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error says that no file descriptor is free; safetensors gives the number in its text."""
    if isinstance(error, OSError):
        return error.errno in EXHAUSTED
    return any(f"(os error {number})" in str(error) for number in EXHAUSTED)


def wait_for_descriptors(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that is called again while no file descriptor is free.

    Only for functions that may be repeated from the beginning. The first failure of a process is told as Advice; after PATIENCE_S
    seconds the error is raised.
    """

    @functools.wraps(function)
    def patient(*args: P.args, **kwargs: P.kwargs) -> R:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if not is_exhausted(error) or time.monotonic() > end:
                    raise
                warnings.warn(
                    f"too many open files; the run waits up to {PATIENCE_S:g} s for a free one. To raise the limit: ulimit -n",
                    Advice, stacklevel=1,
                )  # fmt: skip
                time.sleep(PAUSE_S)

    return patient
