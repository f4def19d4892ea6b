"""The one place where data cross between parties that share a process: packed, counted, seen by a tap, unpacked."""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from ..meter import Direction, Meter
from ..server import Server
from ..wire import Codecs, Message, Packed, pack, unpack

Tap = Callable[[Direction, Packed], None]
Ends = Sequence[tuple[Codecs, Codecs]]  # by client: its own end and the server's


class Link:
    """Carries messages in both directions; `tap` sees whole messages as they cross, after the codec."""

    def __init__(self, codecs: Ends, meter: Meter, tap: Tap | None = None) -> None:
        self.codecs, self.meter, self.tap = codecs, meter, tap
        self.lock = threading.Lock()

    def carry(self, direction: Direction, message: Message) -> tuple[Message, Packed]:
        """Return a message as it arrives, and as it crossed."""
        packed = self.send(direction, message)
        return self.arrive(direction, packed), packed

    def send(self, direction: Direction, message: Message) -> Packed:
        """Return a message as it crosses, counted and seen."""
        begin = self.meter.now()
        packed = pack(message, self._ends(direction, message.client)[0])
        self._spent(begin)
        self.note(direction, packed)
        return packed

    def note(self, direction: Direction, packed: Packed) -> None:
        """Count what crosses, and let the tap see it."""
        self.meter.count(direction, packed)
        if self.tap:
            self.tap(direction, packed)

    def arrive(self, direction: Direction, packed: Packed) -> Message:
        """Return what crossed as it arrives."""
        begin = self.meter.now()
        message = unpack(packed, self._ends(direction, packed.message.client)[1])
        self._spent(begin)
        return message

    def _ends(self, direction: Direction, client: int) -> tuple[Codecs, Codecs]:
        mine, theirs = self.codecs[client]
        return (mine, theirs) if direction == "up" else (theirs, mine)

    def _spent(self, begin: float) -> None:
        with self.lock:  # both ends pack and unpack, each in its own thread where they overlap
            self.meter.seconds["codec"] += self.meter.now() - begin


class Replayed:
    """A server that handles messages in a recorded order, whatever order they come in; hellos and marks pass."""

    def __init__(self, server: Server, order: Sequence[int]) -> None:
        self.server, self.order, self.position = server, order, 0
        self.held: dict[int, deque[Message]] = {}

    def handle(self, message: Message) -> list[Message]:
        if message.is_mark or message.is_hello:
            return self.server.handle(message)
        self.held.setdefault(message.client, deque()).append(message)
        replies: list[Message] = []
        while self.position < len(self.order) and (mine := self.held.get(self.order[self.position])):
            self.position += 1
            replies += self.server.handle(mine.popleft())
        return replies


def find(messages: deque[Message], step: int) -> Message | None:
    """Return the first message that answers a step."""
    return next((m for m in messages if m.step == step), None)
