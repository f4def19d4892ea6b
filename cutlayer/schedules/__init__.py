"""The schedules: what is computed now, and who goes on. A new one is one file and one row here."""

from typing import Any, NamedTuple

from . import asynchronous, parallel, relay
from .base import Plan, Schedule

__all__ = ["SCHEDULES", "Entry", "Plan", "Schedule"]


class Entry(NamedTuple):
    """A row of the table: the class, and one line about it."""

    build: Any
    line: str


SCHEDULES: dict[str, Entry] = {
    "relay": Entry(relay.Relay, "clients take turns; the client model travels (or is shared, hand_over = shared)"),
    "parallel": Entry(
        parallel.Parallel, "all clients at once, averaged at every sync; one shared server or a copy for each client"
    ),
    "asynchronous": Entry(
        asynchronous.Asynchronous, "client models are merged as they arrive (FedAsync, FedBuff), over one top or copies"
    ),
}
