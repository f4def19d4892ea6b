"""Messages that survive broken connections: in order, exactly once, and nothing that no session sends."""

import threading
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cutlayer.errors import BadInput
from cutlayer.transports.session import (
    CHUNK,
    CHUNK_BYTES,
    FRAME,
    MAX_UNTAKEN,
    PREFIX,
    RECORD,
    WINDOW_BYTES,
    Closed,
    Session,
    read_control,
)  # fmt: skip


class Pair:
    """Two ends; a connection carries as many records as it is told to, and then breaks."""

    def __init__(self):
        self.ends = Session(), Session()
        self.arrived = [], []

    def converse(self, budget):
        a, b = self.ends
        numbers = a.attach(b.received), b.attach(a.received)
        streams = [iter(s.records(n)) for s, n in zip(self.ends, numbers, strict=True)]
        rest = [0, 0]  # chunks of a message that are still to come
        while budget > 0:
            moved = False
            for i in (0, 1):
                sender, receiver = self.ends[i], self.ends[1 - i]
                if not (rest[i] or sender.at <= sender.last or sender.told_taken < sender.taken) or budget <= 0:
                    continue
                moved, budget = True, budget - 1
                record = next(streams[i])
                kind, _, _, total = RECORD.unpack_from(record)
                rest[i] = rest[i] - 1 if rest[i] else -(-total // CHUNK_BYTES) - 1 if kind == CHUNK else 0
                received = receiver.feed(numbers[1 - i], record)
                if received is not None:
                    self.arrived[1 - i].append(bytes(received.frame))
                    receiver.take(received)
            if not moved:
                break
        for s, n in zip(self.ends, numbers, strict=True):
            s.detach(n)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([1, 100, CHUNK_BYTES - PREFIX.size, CHUNK_BYTES, 2_600_000])), max_size=6
    ),
    breaks=st.lists(st.integers(0, 6), max_size=8),
)
def test_in_order_and_exactly_once_however_often_the_connection_breaks(sizes, breaks):
    pair, sent = Pair(), ([], [])
    for n, (end, size) in enumerate(sizes):
        data = bytes([n + 1]) * size
        pair.ends[end].put(FRAME, [data])
        sent[1 - end].append(data)
    for budget in breaks:
        pair.converse(budget)
    pair.converse(10_000)
    assert pair.arrived == sent
    assert all(s.unsettled() == 0 for s in pair.ends)


def test_a_message_of_300_mb_is_assembled_once():
    data = torch.arange(300_000_000 // 8).numpy().tobytes()
    a, b = Session(), Session()
    mine, theirs = a.attach(0), b.attach(0)
    a.put(FRAME, [data])
    received, peak = None, 0
    for record in a.records(mine):
        assert len(record) <= CHUNK_BYTES + RECORD.size
        received = b.feed(theirs, record)
        peak = max(peak, len(b.partial))
        if received is not None:
            break
    assert received.frame == data
    assert peak == len(data) + PREFIX.size  # one buffer, of the message's own size
    b.take(received)
    a.feed(mine, next(b.records(theirs)))
    assert a.unsettled() == 0


def test_the_window_holds_a_sender_back_but_never_a_large_message():
    session = Session()
    assert session.put(FRAME, [bytes(2 * WINDOW_BYTES)], block=True, timeout=0.0)
    assert not session.put(FRAME, [b"x"], block=True, timeout=0.01)
    session.close()
    with pytest.raises(Closed):
        session.put(FRAME, [b"x"], block=True, timeout=5)


def test_a_receiver_waits_until_what_came_is_taken():
    a, b = Session(), Session()
    mine, theirs = a.attach(0), b.attach(0)
    for _ in range(9):  # a sender that keeps to no window
        a.put(FRAME, [bytes(1 << 20)])
    stream, came, room = a.records(mine), [], threading.Event()
    while len(came) < 8:
        if (received := b.feed(theirs, next(stream))) is not None:
            came.append(received)
    waiting = threading.Thread(target=lambda: (b.wait_for_room(theirs), room.set()))
    waiting.start()
    assert not room.wait(0.1)
    b.take(came.pop(0))
    assert room.wait(5)
    assert b.untaken < WINDOW_BYTES


def test_who_asks_and_takes_no_reply_is_heard_no_more(monkeypatch):
    monkeypatch.setattr("cutlayer.transports.session.MAX_UNTAKEN_BYTES", 1 << 20)
    a, b = Session(), Session()
    mine, theirs = a.attach(0), b.attach(0)
    stream = a.records(mine)
    for _ in range(MAX_UNTAKEN + 1):
        a.put(FRAME, [b"x"])
        b.take(b.feed(theirs, next(stream)))
        b.put(FRAME, [bytes(1 << 15)])
    a.put(FRAME, [b"x"])
    with pytest.raises(BadInput, match="65 replies lie here that the other end did not take"):
        b.feed(theirs, next(stream))


def test_nobody_waits_for_room_on_a_connection_that_is_over():
    session = Session()
    number = session.attach(0)
    session.untaken = 2 * WINDOW_BYTES
    session.detach(number)
    session.wait_for_room(number)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_garbage_is_refused_and_changes_nothing(data):
    session = Session()
    number = session.attach(0)
    before = (session.received, session.last, session.filled, session.acked)
    with suppress(BadInput):
        assert session.feed(number, data) is None  # the beginning of a message, or an acknowledgement of nothing
    assert (session.received, session.last, session.acked) == (before[0], before[1], before[3])
    assert session.filled == 0 or data[0] == CHUNK
    with pytest.raises(BadInput):
        read_control(data[:1] + b"\x00" + data)


@pytest.mark.parametrize(
    ("kind", "number", "acked", "total", "payload"),
    [
        (CHUNK, 1, 0, 1 << 40, b"x"),  # a wall of memory
        (CHUNK, 1, 0, 100, b""),
        (CHUNK, 1, 0, 100, b"x" * 101),
        (CHUNK, 2, 0, 100, b"x"),  # a message is missing
        (CHUNK, 1, 5, 100, b"x"),  # acknowledged what was never sent
        (7, 1, 0, 100, b"x"),
        (CHUNK, 1, 0, PREFIX.size, b"x"),
    ],
)
def test_what_no_session_sends_is_refused(kind, number, acked, total, payload):
    session = Session()
    with pytest.raises(BadInput):
        session.feed(session.attach(0), RECORD.pack(kind, number, acked, total) + payload)
    assert len(session.partial) in (0, 100)
