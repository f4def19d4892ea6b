"""All parties in one process: the reference that every other transport has to equal, bit for bit and byte for byte."""

from collections import deque
from collections.abc import Iterable, Mapping

from ..meter import Meter
from ..server import Server
from ..wire import Collect, Exchange, Message
from .behind import Behind, Overlapped
from .link import Ends, Link, Replayed, Tap, find


def run(
    programs: Mapping[int, Exchange[None]],
    server: Server | Replayed,
    codecs: Ends,
    meter: Meter,
    *,
    tap: Tap | None = None,
    lag: int = 0,
    overlap: int = 0,
    core: int | None = None,
) -> None:
    """Run every client's program to its end, in a fixed order.

    `lag` lets the server fall behind by that many messages that nobody waits for; they are handled, in order, before
    anything that somebody waits for. With `overlap` it handles them in a thread of its own, at most so many behind, on that
    `core` if one is given. `tap` sees whole messages as they cross, after the codec.
    """
    inbox: dict[int, deque[Message]] = {k: deque() for k in programs}
    running: deque[tuple[int, Message | None]] = deque((k, None) for k in programs)
    waits: dict[int, int] = {}  # who waits, and for the reply to which step
    link = Link(codecs, meter, tap)
    behind = Overlapped(overlap, meter.cuda, core) if overlap else Behind(lag)

    def deliver(replies: Iterable[Message]) -> None:
        for reply in replies:
            inbox[reply.client].append(link.carry("down", reply)[0])

    try:
        while running or waits:
            if not running:  # nobody can go on, so whatever the server had put off is now due
                deliver(behind.drain())
            # in the order of their numbers, as after a mark
            for k in sorted(k for k in waits if find(inbox[k], waits[k]) is not None):
                found = find(inbox[k], waits.pop(k))
                assert found is not None
                inbox[k].remove(found)
                running.append((k, found))
            if not running:
                raise RuntimeError(f"clients {sorted(waits)} wait for replies that will never come")
            k, reply = running.popleft()
            try:
                sent = programs[k].send(reply)
            except StopIteration:
                continue
            if isinstance(sent, Collect):
                waits[k] = sent.step
                continue
            packed = link.send("up", sent)
            deliver(behind.put(lambda packed=packed: server.handle(link.arrive("up", packed))))  # type: ignore[misc]
            if sent.reply == "wait":
                waits[k] = sent.step
                deliver(behind.drain())
            else:
                running.append((k, None))
        deliver(behind.drain())
    finally:
        behind.close()
