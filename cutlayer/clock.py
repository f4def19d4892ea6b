"""A virtual clock: what a run would have taken on given links and processors; modelled times only, nothing is measured."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .meter import Direction, Meter


@dataclass
class Clock:
    """Seconds from multiply-adds over speed, and from bits over bandwidth plus latency; None costs nothing.

    `uplink` and `downlink` in Mbit/s for each client, `latency` in ms each way, `speeds` in multiply-adds per second, of one
    client or of all alike, `server_speed` likewise. A link carries one message at a time, the server computes one step at a time.
    """

    meter: Meter
    uplink: float | None = None
    downlink: float | None = None
    latency: float = 0.0
    speeds: tuple[float, ...] = ()
    server_speed: float | None = None
    now: float = 0.0  # of the server
    at: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # of each client
    server_free: float = 0.0
    links: dict[tuple[str, int], float] = field(default_factory=lambda: defaultdict(float))
    order: list[int] = field(default_factory=list)  # whose message was handled, one after the other
    midway: set[int] = field(default_factory=set)  # who is at a mark in the middle of a turn
    _seen: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def seconds(self) -> float:
        """Return the time at which the server has done what it has computed so far."""
        return max(self.now, self.server_free) + self._pending("server")

    def computed(self, who: str) -> float:
        """Return the seconds of what "server" or a client (its number as text) has computed since it was last asked."""
        pending, self._seen[who] = self._pending(who), self.meter.work.get(who, 0.0)
        return pending

    def _pending(self, who: str) -> float:
        done = self.meter.work.get(who, 0.0) - self._seen[who]
        speed = self.server_speed if who == "server" else self.speeds[int(who) % len(self.speeds)] if self.speeds else None
        return done / speed if speed else 0.0

    def sent(self, direction: Direction, client: int, begin: float, nbytes: int) -> float:
        """Return when a message of so many bytes, ready at `begin`, has arrived; it waits until its link is free."""
        rate = self.uplink if direction == "up" else self.downlink
        begin = max(begin, self.links[direction, client])
        self.links[direction, client] = end = begin + (8e-6 * nbytes / rate if rate else 0.0)
        return end + self.latency / 1000

    def state(self) -> dict[str, Any]:
        links = [[*key, time] for key, time in self.links.items()]
        times = {"now": self.now, "server_free": self.server_free, "at": list(self.at.items()), "links": links}
        return {**times, "seen": dict(self._seen), "order": self.order, "midway": sorted(self.midway)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.now, self.server_free = state["now"], state["server_free"]
        self.order, self.midway = list(state["order"]), set(state["midway"])
        self.at.update(dict(state["at"]))
        self.links.update({(direction, k): time for direction, k, time in state["links"]})
        self._seen.update(state["seen"])
