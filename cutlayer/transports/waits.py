"""How long an idle server has waited for each of its clients."""

from collections.abc import Collection

NAMED_AFTER_S = 30.0  # a server names a client that it has waited for so long


class Waits:
    """Seconds by client, counted only while the server has nothing to do.

    A client that is connected and owes a message is silent; one that is not connected is absent. Bytes of a client that move start
    its silence anew, unless the message that they belong to turns out to be useless. Only a message that the server can use ends a
    wait: a client that connects again and again has sent nothing either.
    """

    def __init__(self) -> None:
        self.owed: dict[int, float] = {}  # seconds since the client owes a message
        self.moved: dict[int, float] = {}  # of these, the seconds before its bytes last moved
        self.away: dict[int, float] = {}
        self.named: set[int] = set()

    def count_silence(self, clients: Collection[int], seconds: float, moved: Collection[int]) -> None:
        """Add the seconds to the silence of `clients`; those in `moved` sent or received bytes meanwhile."""
        for k in clients:
            self.owed[k] = self.owed.get(k, 0.0) + seconds
            if k in moved:
                self.moved[k] = self.owed[k]

    def count_absence(self, clients: Collection[int], seconds: float) -> None:
        """Add the seconds to the absence of `clients`."""
        for k in clients:
            self.away[k] = self.away.get(k, 0.0) + seconds

    def silence(self, k: int) -> float:
        """Return the seconds for which a client that owes a message has sent nothing."""
        return self.owed.get(k, 0.0) - self.moved.get(k, 0.0)

    def absence(self, k: int) -> float:
        """Return the seconds for which everybody has waited for a client that is not connected."""
        return self.away.get(k, 0.0)

    def end(self, k: int) -> None:
        """End the wait for a client: it sent something useful, or it has left."""
        for table in (self.owed, self.moved, self.away):
            table.pop(k, None)
        self.named.discard(k)

    def end_silence(self) -> None:
        """Start the silence of all clients anew, because all begin again at a mark."""
        self.owed.clear()
        self.moved.clear()

    def discount(self, k: int) -> None:
        """Count the time in which a client's bytes moved after all, because its message was useless."""
        self.moved.pop(k, None)

    def overdue(self, clients: Collection[int]) -> list[int]:
        """Return those of `clients` that are to be named now, each once for a wait."""
        found = [k for k in clients if k not in self.named and max(self.silence(k), self.absence(k)) >= NAMED_AFTER_S]
        self.named.update(found)
        return found
