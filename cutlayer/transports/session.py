"""Messages that survive a broken connection: numbered, acknowledged, sent again, and taken exactly once."""

import json
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import BadInput
from ..frame import MAX_BYTES
from ..printable import printable_values

CHUNK_BYTES = (1 << 20) + (1 << 13)  # activations of 1 MB and their header are one chunk
WINDOW_BYTES = 8 << 20  # sent and not yet taken by the other end; a single larger message may be under way
MAX_UNTAKEN, MAX_UNTAKEN_BYTES = 64, 64 * WINDOW_BYTES  # of replies, both, beyond which who asked is heard no more
OBJECT_BYTES = 1 << 10  # what a message costs its receiver beside its own bytes, at least
TOLD_BYTES, TOLD_S = WINDOW_BYTES // 4, 0.005  # what was taken is told at the latest after so many bytes or seconds
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
    held: int  # bytes

    @property
    def nbytes(self) -> int:
        return 0 if self.frame is None else len(self.frame)


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
        found = printable_values(json.loads(bytes(data)))  # the one place where the other end's words come in
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise BadInput(f"a control record cannot be read ({error})") from None
    return found


def records(number: int, data: Sequence[bytes | memoryview]) -> list[bytes]:
    """Return a message's records: its bytes in chunks of CHUNK_BYTES, of which only the last is smaller, each behind a header."""
    views = [memoryview(piece) for piece in data]
    head = RECORD.pack(CHUNK, number, 0, sum(map(len, views)))
    found, parts, size = list[bytes](), list[bytes | memoryview]([head]), 0
    for view in views:
        while len(view):
            part = view[: CHUNK_BYTES - size]
            parts.append(part)
            view, size = view[len(part) :], size + len(part)
            if size == CHUNK_BYTES:
                found.append(b"".join(parts))
                parts, size = [head], 0
    return [*found, b"".join(parts)] if size else found


def room(size: int) -> np.ndarray:
    """Return so many bytes that nothing has been written to; NumPy copies into them without holding up other threads."""
    return np.empty(size, np.uint8)


class Session:
    """One end of a conversation that outlives its connections.

    What is put in is kept until the other end has taken it. A connection asks for `records` to send, and feeds those that come.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.epoch = 0
        self.max_message: Callable[[], int] = lambda: MAX_BYTES  # bytes of a message that may come now
        self.reset()

    def reset(self) -> None:
        """Begin anew, as the other end does that knows nothing of this conversation."""
        with self.changed:
            self.epoch += 1
            self.unacked: deque[tuple[int, list[bytes]]] = deque()
            self.last = self.acked = 0  # numbers of messages put in, and taken by the other end
            self.received = self.taken = self.told_taken = 0  # numbers of messages that came, were taken, and were said to be
            self.untold = 0  # bytes that were taken and not said to be
            self.untaken = 0  # bytes that came and were not taken
            self.at, self.connection, self.closed, self.lost = 0, 0, False, False
            self.partial, self.filled = room(0), 0
            self.furthest = {"in": (0, 0), "out": (0, 0)}  # message and bytes of it (of "out": chunks) that have moved
            self.progressed = time.monotonic()  # when bytes last moved for the first time, or the other end took a message
            self.changed.notify_all()

    def put(
        self, kind: int, data: Iterable[bytes | memoryview], label: int = 0, block: bool = False, timeout: float | None = None,
        epoch: int | None = None,
    ) -> bool:  # fmt: skip
        """Put in a message, copied once, into the chunks that it is sent in.

        `block` waits while the window is full, at most `timeout` seconds; returns whether there was room, and whether the session
        is still that of `epoch`, if one is given. Raises Closed.
        """
        with self.changed:
            if block and not self.changed.wait_for(lambda: self.closed or self.unsettled() < WINDOW_BYTES, timeout):
                return False
            if self.closed:
                raise Closed
            if epoch not in (None, self.epoch):
                return False
            self.last += 1
            self.unacked.append((self.last, records(self.last, [PREFIX.pack(label, kind), *data])))
            self.changed.notify_all()
            return True

    def tell(self, **what: Any) -> None:
        """Put in a control record that arrives in order and exactly once, like a message."""
        self.put(TOLD, [json.dumps(what).encode()])

    def unsettled(self) -> int:
        """Return the bytes that the other end has not taken yet."""
        return sum(len(chunk) for _, chunks in self.unacked for chunk in chunks)

    def settled(self, patience: float) -> bool:
        """Wait until the other end has taken everything, its connection is over, or nothing has moved for so many seconds.

        Returns whether it has taken everything.
        """
        with self.changed:
            self.progressed, connection = time.monotonic(), self.connection
            while self.unacked and not self._over(connection) and (left := self.progressed + patience - time.monotonic()) > 0:
                self.changed.wait(left)
            return not self.unacked and not self.lost

    def attach(self, received: int) -> int:
        """Begin a connection whose other end has received so many messages, and return its number; the one before it is over."""
        with self.changed:
            self._forget(received)
            self.connection += 1
            self.at, self.filled, self.partial = self.acked + 1, 0, room(0)
            self.told_taken = self.untold = 0
            self.changed.notify_all()
            return self.connection

    def detach(self, connection: int) -> None:
        """End a connection, if it is not over already."""
        with self.changed:
            if self.connection == connection:
                self.connection += 1
                self.changed.notify_all()

    def close(self) -> None:
        """End everything; what is not taken is lost, and its memory is released."""
        with self.changed:
            self.closed, self.lost = True, self.lost or bool(self.unacked)
            self.unacked.clear()
            self.partial, self.filled = room(0), 0
            self.changed.notify_all()

    def records(self, connection: int) -> Iterator[bytes]:
        """Yield what a connection has to send, until it is over."""
        while True:
            with self.changed:
                begin = time.monotonic()
                while not (self._over(connection) or self.at <= self.last or self.untold >= TOLD_BYTES):
                    waited = time.monotonic() - begin
                    if self.told_taken < self.taken and waited >= TOLD_S:
                        break
                    self.changed.wait(TOLD_S - waited if self.told_taken < self.taken else None)
                    if self.told_taken == self.taken:
                        begin = time.monotonic()
                if self._over(connection):
                    return
                number, chunks = self.at, list[bytes]()
                if self.at <= self.last:
                    chunks = self.unacked[self.at - self.unacked[0][0]][1]
                    self.at += 1
            if not chunks:
                yield RECORD.pack(ACK, 0, self._told(), 0)
            for i, chunk in enumerate(chunks, 1):
                if self._over(connection):
                    return
                self._advance("out", number, i)
                yield chunk

    def _told(self) -> int:
        with self.changed:
            self.told_taken, self.untold = self.taken, 0
            return self.taken

    def _advance(self, direction: str, number: int, position: int) -> None:
        """Note the progress of a message; what is sent again after a broken connection is none."""
        if (number, position) > self.furthest[direction]:
            self.furthest[direction], self.progressed = (number, position), time.monotonic()

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
            if total > self.max_message():
                raise BadInput(
                    f"a message of {total} bytes comes, and no message of this run has more than {self.max_message()}"
                )
            if number != self.received + 1 and not (number <= self.received and not self.filled):
                raise BadInput(f"message {number} came after message {self.received}")
            if not self.filled:
                if len(self.unacked) > MAX_UNTAKEN and self.unsettled() > MAX_UNTAKEN_BYTES:
                    raise BadInput(
                        f"{len(self.unacked)} replies lie here that the other end did not take; it has to, or to ask less"
                    )
                self.partial = room(total)
            if len(self.partial) != total or self.filled + len(payload) > total:
                raise BadInput(f"message {number} has more than the {len(self.partial)} bytes that it said")
            if len(payload) < min(CHUNK_BYTES, total - self.filled):
                raise BadInput(f"a chunk of {len(payload)} bytes in the middle of a message; it has {CHUNK_BYTES}")
            self.partial[self.filled : self.filled + len(payload)] = np.frombuffer(payload, np.uint8)
            self.filled += len(payload)
            self._advance("in", number, self.filled)
            if self.filled < total:
                return None
            data, self.partial, self.filled = self.partial, room(0), 0
            if number <= self.received:  # sent again because our word of it was lost
                return None
            self.received, held = number, total + OBJECT_BYTES
            self.untaken += held
        view = memoryview(data)  # type: ignore[arg-type]
        label, told = PREFIX.unpack_from(view)
        rest = view[PREFIX.size :]
        return Received(self.epoch, label, None, _json(rest), held) if told else Received(self.epoch, label, rest, {}, held)

    def wait_for_room(self, connection: int) -> None:
        """Wait as long as more lies here than the window and its last message; whoever stops reading for it holds the sender back."""
        with self.changed:
            self.changed.wait_for(lambda: self._over(connection) or self.untaken < WINDOW_BYTES)

    def take(self, received: Received) -> None:
        """Say that a message, the oldest that came and was not taken, has been dealt with."""
        with self.changed:
            if received.epoch == self.epoch:
                first = self.told_taken == self.taken
                self.taken += 1
                self.untold += received.nbytes
                had_room, self.untaken = self.untaken < WINDOW_BYTES, self.untaken - received.held
                if first or self.untold >= TOLD_BYTES or not had_room:
                    self.changed.notify_all()

    def _forget(self, acked: int) -> None:
        if acked > self.acked:
            self.acked, self.progressed = acked, time.monotonic()
            while self.unacked and self.unacked[0][0] <= acked:
                self.unacked.popleft()
            self.changed.notify_all()
