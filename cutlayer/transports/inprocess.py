"""All parties in one process: the reference that every other transport has to equal, bit for bit and byte for byte."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ..meter import Direction, Meter
from ..server import Server
from ..wire import Codecs, Collect, Exchange, Message, Packed, pack, unpack

Tap = Callable[[Direction, Packed], None]
Ends = Sequence[tuple[Codecs, Codecs]]  # by client: its own end and the server's


def run(
    programs: Mapping[int, Exchange[None]],
    server: Server,
    codecs: Ends,
    meter: Meter,
    *,
    tap: Tap | None = None,
    lag: int = 0,
) -> None:
    """Run every client's program to its end, in a fixed order.

    `lag` lets the server fall behind by that many messages that nobody waits for; they are handled, in order, before
    anything that somebody waits for. `tap` sees whole messages as they cross, after the codec.
    """
    inbox: dict[int, deque[Message]] = {k: deque() for k in programs}
    behind: deque[Message] = deque()
    running: deque[tuple[int, Message | None]] = deque((k, None) for k in programs)
    waits: dict[int, int | None] = {}  # who waits, and for which step (None: any)

    def carry(direction: Direction, message: Message) -> Message:
        mine, theirs = codecs[message.client] if direction == "up" else reversed(codecs[message.client])
        begin = meter.now()
        packed = pack(message, mine)
        arrived = unpack(packed, theirs)
        meter.seconds["codec"] += meter.now() - begin
        meter.count(direction, packed)
        if tap:
            tap(direction, packed)
        return arrived

    def serve(message: Message) -> None:
        for reply in server.handle(message):
            inbox[reply.client].append(carry("down", reply))

    while running or waits:
        if not running:  # nobody can go on, so whatever the server had put off is now due
            _drain(behind, serve)
        for k in [k for k in waits if (found := _find(inbox[k], waits[k])) is not None]:
            found = _find(inbox[k], waits.pop(k))
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
        arrived = carry("up", sent)
        if sent.reply == "wait":
            waits[k] = None
            _drain(behind, serve)
            serve(arrived)
        else:
            behind.append(arrived)
            while len(behind) > lag:
                serve(behind.popleft())
            running.append((k, None))
    _drain(behind, serve)


def _drain(behind: deque[Message], serve: Callable[[Message], None]) -> None:
    while behind:
        serve(behind.popleft())


def _find(messages: deque[Message], step: int | None) -> Message | None:
    return next((m for m in messages if step is None or m.step == step), None)
