"""SIGTERM, handled as Ctrl-C is, so that a run that is stopped by a system ends like one that is stopped by a person."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminable() -> Iterator[Callable[[], bool]]:
    """Pass SIGTERM to whatever handles SIGINT when it comes; yields a function that returns whether it has come."""
    came = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: came
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # Ctrl-C is ignored here, as in a background job of a shell
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
