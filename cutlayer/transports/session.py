"""Messages that survive a broken connection: numbered, acknowledged, sent again, and taken exactly once."""

import json
import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import BadInput
from ..frame import MAX_BYTES

CHUNK_BYTES = 1 << 20
WINDOW_BYTES = 8 << 20  # sent and not yet taken by the other end; a single larger message may be under way
MAX_CONTROL = 1 << 20
CHUNK, ACK, CONTROL = 1, 2, 3
RECORD = struct.Struct("<B7xQQQ")  # type, number of the message, acknowledged, bytes of the whole message
PREFIX = struct.Struct("<QB55x")  # of a message: label, whether it is a control record; a frame's tensors stay aligned
FRAME, TOLD = 0, 1


class Received(NamedTuple):
    """A whole message: a frame with the label of its sender's state, or what was told; `epoch` is the session's."""

    epoch: int
    label: int
    frame: memoryview | None
    told: dict[str, Any]


class Closed(Exception):
    """Nothing more can be sent."""


def control(**what: Any) -> bytes:
    """Return a record that belongs to a connection, and is lost with it."""
    return RECORD.pack(CONTROL, 0, 0, 0) + json.dumps(what).encode()


def read_control(record: bytes) -> dict[str, Any]:
    """Return what a connection's record says; raises BadInput if it is none."""
    if len(record) < RECORD.size or record[0] != CONTROL:
        raise BadInput("a connection has to begin with a control record")
    return _json(memoryview(record)[RECORD.size :])


def _json(data: memoryview) -> dict[str, Any]:
    try:
        if len(data) > MAX_CONTROL:
            raise ValueError(f"{len(data)} bytes, at most {MAX_CONTROL}")
        found = json.loads(bytes(data))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"a control record cannot be read ({error})") from None
    return found


class Session:
    """One end of a conversation that outlives its connections.

    What is put in is kept until the other end has taken it. A connection asks for `records` to send, and feeds those that come.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.epoch = 0
        self.reset()

    def reset(self) -> None:
        """Begin anew, as the other end does that knows nothing of this conversation."""
        with self.changed:
            self.epoch += 1
            self.unacked: deque[tuple[int, bytes]] = deque()
            self.last = self.acked = 0  # numbers of messages put in, and taken by the other end
            self.received = self.taken = self.told_taken = 0  # numbers of messages that came, were taken, and were said to be
            self.at, self.connection, self.closed = 0, 0, False
            self.partial, self.filled = bytearray(), 0
            self.changed.notify_all()

    def put(self, kind: int, data: bytes, label: int = 0, block: bool = False, timeout: float | None = None) -> bool:
        """Put in a message; `block` waits while the window is full, at most `timeout` seconds, and returns whether there was room."""
        with self.changed:
            if block and not self.changed.wait_for(lambda: self.closed or self.unsettled() < WINDOW_BYTES, timeout):
                return False
            if self.closed:
                raise Closed
            self.last += 1
            self.unacked.append((self.last, PREFIX.pack(label, kind) + data))
            self.changed.notify_all()
            return True

    def tell(self, **what: Any) -> None:
        """Put in a control record that arrives in order and exactly once, like a message."""
        self.put(TOLD, json.dumps(what).encode())

    def unsettled(self) -> int:
        """Return the bytes that the other end has not taken yet."""
        return sum(len(data) for _, data in self.unacked)

    def settled(self, timeout: float) -> bool:
        """Wait until the other end has taken everything, and return whether it has."""
        with self.changed:
            return self.changed.wait_for(lambda: not self.unacked, timeout)

    def attach(self, received: int) -> int:
        """Begin a connection whose other end has received so many messages, and return its number; the one before it is over."""
        with self.changed:
            self._forget(received)
            self.connection += 1
            self.at, self.filled, self.partial = self.acked + 1, 0, bytearray()
            self.told_taken = 0
            self.changed.notify_all()
            return self.connection

    def detach(self, connection: int) -> None:
        """End a connection, if it is not over already."""
        with self.changed:
            if self.connection == connection:
                self.connection += 1
                self.changed.notify_all()

    def close(self) -> None:
        """End everything; what is not taken is lost."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def records(self, connection: int) -> Iterator[bytes]:
        """Yield what a connection has to send, until it is over."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._over(connection) or self.at <= self.last or self.told_taken < self.taken)
                if self._over(connection):
                    return
                data, number = b"", self.at
                if self.at <= self.last:
                    data = self.unacked[self.at - self.unacked[0][0]][1]
                    self.at += 1
                else:
                    self.told_taken = self.taken
            if not data:
                yield RECORD.pack(ACK, 0, self.taken, 0)
                continue
            view = memoryview(data)
            for first in range(0, len(view), CHUNK_BYTES):
                if self._over(connection):
                    return
                self.told_taken = self.taken
                head = RECORD.pack(CHUNK, number, self.told_taken, len(view))
                yield b"".join((head, view[first : first + CHUNK_BYTES]))

    def _over(self, connection: int) -> bool:
        return self.closed or self.connection != connection

    def feed(self, connection: int, record: bytes) -> Received | None:
        """Take in a record of a connection, and return a message when it is whole; raises BadInput on what no session sends."""
        if len(record) < RECORD.size:
            raise BadInput(f"a record of {len(record)} bytes is less than its header")
        kind, number, acked, total = RECORD.unpack_from(record)
        with self.changed:
            if self._over(connection):
                return None
            if acked > self.last:
                raise BadInput(f"message {acked} is acknowledged, and only {self.last} were sent")
            self._forget(acked)
            if kind == ACK:
                return None
            payload = memoryview(record)[RECORD.size :]
            if kind != CHUNK or not PREFIX.size < total <= MAX_BYTES or not 0 < len(payload) <= CHUNK_BYTES:
                raise BadInput(f"a record of type {kind} for {total} bytes; the sender speaks another version")
            if number != self.received + 1 and not (number <= self.received and not self.filled):
                raise BadInput(f"message {number} came after message {self.received}")
            if not self.filled:
                self.partial = bytearray(total)
            if len(self.partial) != total or self.filled + len(payload) > total:
                raise BadInput(f"message {number} has more than the {len(self.partial)} bytes that it said")
            self.partial[self.filled : self.filled + len(payload)] = payload
            self.filled += len(payload)
            if self.filled < total:
                return None
            data, self.partial, self.filled = self.partial, bytearray(), 0
            if number <= self.received:  # sent again because our word of it was lost
                return None
            self.received = number
        label, told = PREFIX.unpack_from(data)
        rest = memoryview(data)[PREFIX.size :]
        return Received(self.epoch, label, None, _json(rest)) if told else Received(self.epoch, label, rest, {})

    def take(self, received: Received) -> None:
        """Say that a message, the oldest that came and was not taken, has been dealt with."""
        with self.changed:
            self.taken += received.epoch == self.epoch
            self.changed.notify_all()

    def _forget(self, acked: int) -> None:
        while self.unacked and self.unacked[0][0] <= acked:
            self.unacked.popleft()
        self.acked = max(self.acked, acked)
        self.changed.notify_all()
