"""All parties in one process under a virtual clock: messages are handled in the order in which they would have arrived."""

import heapq
from collections import deque
from collections.abc import Mapping

from ..clock import Clock
from ..meter import Meter
from ..server import Server
from ..wire import Collect, Exchange, Message, Packed
from .link import Ends, Link, Tap, find


class Simulation:
    """A heap of events (time, client, number); equal times go by client, then by what was sent first."""

    def __init__(
        self, programs: Mapping[int, Exchange[None]], server: Server, codecs: Ends, meter: Meter, clock: Clock, tap: Tap | None
    ) -> None:
        self.programs, self.server, self.meter, self.clock = programs, server, meter, clock
        meter.clock = clock.seconds
        self.link = Link(codecs, meter, tap)
        self.events: list[tuple[float, int, int, bool, Message | None]] = []  # ..., is at the server, what
        self.inbox: dict[int, deque[Message]] = {k: deque() for k in programs}
        self.waits: dict[int, int] = {}
        self.count = 0
        self.last: dict[int, float] = {}  # when a client's latest message arrives
        # who goes on from a mark says hello for nothing, and in the middle of a turn is let go for nothing
        self.hello, self.midway = set(clock.at), set(clock.midway)
        clock.midway.clear()

    def run(self) -> None:
        """Run to the end."""
        for k in self.programs:
            self._push(self.clock.at[k], k, False, None)
        while self.events:
            time, k, _, at_server, message = heapq.heappop(self.events)
            if at_server:
                assert message is not None
                self._serve(time, message)
            elif message is None:
                self._resume(time, k, None)
            else:
                self.inbox[k].append(message)
                self._deliver(time, k)
        if self.waits:
            raise RuntimeError(f"clients {sorted(self.waits)} wait for replies that will never come")

    def _push(self, time: float, k: int, at_server: bool, message: Message | None) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, k, self.count, at_server, message))

    def _deliver(self, time: float, k: int) -> None:
        if k in self.waits and (found := find(self.inbox[k], self.waits[k])) is not None:
            del self.waits[k]
            self.inbox[k].remove(found)
            self._resume(time, k, found)

    def _resume(self, time: float, k: int, reply: Message | None) -> None:
        try:
            sent = self.programs[k].send(reply)
        except StopIteration:
            return
        time += self.clock.computed(str(k))
        self.clock.at[k] = time
        if isinstance(sent, Collect):
            self.waits[k] = sent.step
            self._deliver(time, k)
            return
        message, packed = self.link.carry("up", sent)
        free = sent.is_mark or k in self.hello
        self.hello.discard(k)
        # what costs nothing still comes after what was sent before it
        arrives = max(time, self.last.get(k, 0.0)) if free else self.clock.sent("up", k, time, size(packed))
        self.last[k] = arrives
        if sent.is_sync:
            self.clock.at[k] = arrives
        self._push(arrives, k, True, message)
        if sent.reply == "wait":
            self.waits[k] = sent.step
        else:
            self._push(time, k, False, None)

    def _serve(self, time: float, message: Message) -> None:
        clock, marks = self.clock, message.is_mark
        begin = max(time, clock.now, 0.0 if marks else clock.server_free)
        clock.now = begin
        if marks:  # a mark is a barrier: everybody at it goes on together
            clock.midway |= {*self.server.marking, message.client}
            clock.at.update(dict.fromkeys(clock.midway, begin))
        elif not message.is_hello:
            clock.order.append(message.client)
        replies = self.server.handle(message)
        clock.server_free = end = max(clock.server_free, begin + clock.computed("server"))
        for reply in replies:
            arrived, packed = self.link.carry("down", reply)
            k = reply.client
            free = reply.is_mark or k in self.midway
            self.midway.discard(k)
            clock.midway.discard(k)
            self._push(clock.at[k] if free else clock.sent("down", k, end, size(packed)), k, False, arrived)


def size(packed: Packed) -> int:
    """Return the bytes of a message that count in time: all but those of the evaluation."""
    return packed.nbytes - packed.payload().get("evaluation", 0)


def run(
    programs: Mapping[int, Exchange[None]], server: Server, codecs: Ends, meter: Meter, *, clock: Clock, tap: Tap | None = None
) -> None:
    """Run every client's program to its end under the clock."""
    Simulation(programs, server, codecs, meter, clock, tap).run()
