"""How often clients were turned away, and when they may come back."""

import threading
import time
from collections.abc import Callable

FIRST_PAUSE_S = 1.0


class Offences:
    """Counts offences by client name for the life of this process; `limit` of them exclude a client.

    After each one the client stays out for a pause that doubles, from FIRST_PAUSE_S. Network threads ask, the computing thread counts.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.clock = limit, clock
        self.lock = threading.Lock()
        self.counts: dict[str, int] = {}
        self.ends: dict[str, float] = {}

    def add(self, name: str) -> bool:
        """Count an offence, and return whether the client is excluded now."""
        with self.lock:
            self.counts[name] = count = self.counts.get(name, 0) + 1
            self.ends[name] = self.clock() + FIRST_PAUSE_S * 2.0 ** min(count - 1, 30)
            return count >= self.limit

    def count(self, name: str) -> int:
        return self.counts.get(name, 0)

    def is_excluded(self, name: str) -> bool:
        return self.count(name) >= self.limit

    def pause(self, name: str) -> float:
        """Return for how many seconds a client is not let in yet."""
        with self.lock:
            return max(0.0, self.ends.get(name, 0.0) - self.clock())

    def forgive(self, name: str) -> int:
        """Forget a client's offences, and return how many there were."""
        with self.lock:
            self.ends.pop(name, None)
            return self.counts.pop(name, 0)


def times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
