"""The server's half of a run across processes: who is there, what they sent, and going back to a mark when one of them died."""

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..errors import BadInput, Diverged, NotFinite
from ..expected import Expected
from ..server import Server
from ..wire import Message, Packed
from .link import Link
from .member import Start
from .waits import Waits


class Book(Protocol):
    """Keeps the server's marks: `newest` with its number, None and 0 before the first one; `load` goes back to one.

    `check_finite` raises Diverged if the server's losses or weights are not finite; `diverged` returns that error for another reason.
    """

    def newest(self) -> tuple[Any, int]: ...
    def load(self, state: Any) -> None: ...
    def built(self) -> Any: ...
    def check_finite(self) -> None: ...
    def diverged(self, what: str) -> Diverged: ...


class Host:
    """Hands messages to the server, in one thread, and its replies to `post`; no transport's code is in it.

    Recovery is the same for every schedule: the server and all clients that are there go back to the newest mark and go on under a
    new incarnation; what was sent since is metered as repeated. Who stays away for `patience` seconds in which the server could do
    nothing else has left, and the schedule goes on without it, as long as `quorum` clients are there. A client that is connected and
    keeps an idle server waiting for `turn_timeout` seconds has left too; `dismiss(client, why)` ends its connection.
    """

    def __init__(
        self,
        server: Server,
        link: Link,
        book: Book,
        labels: Callable[[], dict[int, int]],
        post: Callable[[int, Packed | Start], None],
        expected: Expected,
        *,
        patience: float = float("inf"),
        turn_timeout: float = float("inf"),
        quorum: int = 1,
        dismiss: Callable[[int, str], None] = lambda k, why: None,
        say: Callable[[str], None] = lambda line: None,
        names: Sequence[str] = (),
    ) -> None:
        self.server, self.link, self.book, self.labels, self.post = server, link, book, labels, post
        self.expected = expected
        self.patience, self.turn_timeout, self.quorum = patience, turn_timeout, quorum
        self.say, self.dismiss = say, dismiss
        self.names = names or [f"client{k}" for k in range(server.schedule.plan.num_clients)]
        self.first = copy.deepcopy(book.built())
        self.incarnation = 0
        self.there: set[int] = set()
        self.ball: set[int] = set()  # clients that are there and have something to do
        self.heard: set[int] = set()  # who has spoken since the newest mark
        self.not_finite: set[int] = set()  # clients that sent infinity or NaN, and have finished no round since
        self.finished: dict[int, Mapping[str, Any]] = {}
        self.excluded: set[int] = set()  # clients that may not come back
        self.waits = Waits()
        self.unanswered: dict[int, set[int]] = defaultdict(set)  # steps whose reply a client collects later
        self.started: dict[int, int] = {}  # under which incarnation a client was last told to start
        self.begun = self.told = False
        self.incarnated: Callable[[int], None] = lambda number: None

    @property
    def num_clients(self) -> int:
        return self.server.schedule.plan.num_clients

    @property
    def over(self) -> bool:
        """Whether training is over; then nobody goes back to anything."""
        return self.server.schedule.round == self.server.schedule.plan.rounds

    @property
    def done(self) -> bool:
        """Whether training is over and all that are there know it."""
        return self.over and all(k in self.finished or k in self.server.schedule.absent for k in range(self.num_clients))

    def begin(self) -> None:
        """Let those start who are there; the others have left."""
        self.begun = True
        self._again()
        for k in range(self.num_clients):
            if k not in self.there and k not in self.server.schedule.absent:
                self._leave(k)

    def hello(self, k: int, held: Collection[int]) -> None:
        """Take in a client whose process is new, with the labels of the states that it holds."""
        self.there.add(k)
        self.excluded.discard(k)
        if not self.begun:
            return
        label = self.labels().get(k, 0)
        if self.over or k in self.server.schedule.absent:
            self.say(f"{self.names[k]} is here; it takes part from the next round on")
            # without a label whatever it holds is of another run
            self._start(k, label if not label or label in held else max(held, default=0))
        elif k in self.heard:
            self.say(f"{self.names[k]} is back; all go on from mark {self._again()}")
        else:  # it has lost nothing, and only says hello once more
            if k in self.labels():
                self.link.meter.again |= {("up", k)} | ({("down", k)} - {("down", j) for j in self.server.waiting})
            self._start(k, label)

    def lost(self, k: int) -> None:
        """Note that a client's connection is gone."""
        self.there.discard(k)
        if k in self.server.schedule.absent:
            self.server.waiting.pop(k, None)

    def back(self, k: int) -> None:
        """Note that a client's connection is there again; its process was never gone, but it may have missed a roll-back."""
        self.there.add(k)
        if self.begun and self.started.get(k) != self.incarnation:
            self._start(k, self.labels().get(k, 0))

    def expel(self, k: int) -> None:
        """Note that a client was turned away; whatever it did since the newest mark is undone."""
        self.lost(k)
        if self.begun and not self.over and k not in self.server.schedule.absent:
            self._again()

    def exclude(self, k: int, why: str) -> None:
        """Go on without a client that may not come back, as after `patience`; what it did since the newest mark is undone."""
        self.lost(k)
        self.excluded.add(k)
        if self.begun and not self._go_on_without(k, why):
            self._again()

    def frame(self, k: int, packed: Packed, label: int) -> None:
        """Handle one message of a client; what belongs to before a roll-back is dropped."""
        if packed.incarnation != self.incarnation or not self.begun:
            self.waits.discount(k)
            return
        if packed.message.client != k:
            raise BadInput(f"a message of kind {packed.message.kind!r} for client {packed.message.client} came from client {k}")
        try:
            self._handle(k, packed, label)
        except NotFinite as error:
            self._blame(k, error)
        except Diverged as error:
            self._examine(error)

    def _handle(self, k: int, packed: Packed, label: int) -> None:
        self.expected.arriving(packed, self.link.codecs[k][1])
        self.heard.add(k)
        self.link.note("up", packed)
        message = self.link.arrive("up", packed)
        self.expected.check(message)
        if message.is_sync or message.is_mark:
            self.labels()[k] = label
        if message.reply == "wait":
            self.ball.discard(k)
        if message.reply == "later":
            self.unanswered[k].add(message.step)
        self.waits.end(k)
        if message.is_sync and not message.is_hello and not message.numbers["left"]:
            self.not_finite.discard(k)
        self._send(self.server.handle(message))

    def _blame(self, k: int, error: NotFinite) -> None:
        """Raise the error of a client that sent infinity or NaN, unless it has them from the server.

        Raises Diverged if fewer than `quorum` clients are left that did not: then training has diverged.
        """
        try:
            self.book.check_finite()
        except Diverged as diverged:
            self._examine(diverged)
            return
        self.not_finite.add(k)
        if self.num_clients - len(self.server.schedule.absent | self.not_finite) < self.quorum:
            names = ", ".join(self.names[j] for j in sorted(self.not_finite))
            raise self.book.diverged(f"values of {names} are not finite ({error})") from error
        raise error

    def _examine(self, error: Diverged) -> None:
        """Go back to the newest mark and check every message from then on, to find whose message made the server diverge.

        Raises the error if every message was checked already: then finite messages did it.
        """
        if self.expected.examines_all:
            raise error
        self.expected.examines_all = True
        self.say(f"{error}; to find the cause, all go on from mark {self._again()} and every message is checked")

    def bye(self, k: int, figures: Mapping[str, Any]) -> None:
        """Note that a client has finished, and what it has measured."""
        self.finished[k] = figures
        self.ball.discard(k)

    def waited(self, seconds: float, moved: Collection[int] = ()) -> None:
        """Count seconds in which the server was idle; `moved` are the clients to or from which bytes moved meanwhile.

        They count against connected clients that owe a message, and, if nobody owes one, against clients that are away.
        """
        if not self.begun:
            return
        owing, away = self._owing(), self._away()
        self.waits.count_silence(owing, seconds, moved)
        if not owing - self.server.schedule.absent:
            self.waits.count_absence(away, seconds)
        for k in sorted(owing):
            why = f"has sent nothing for {self.turn_timeout:g} s"
            if self.waits.silence(k) > self.turn_timeout and self._go_on_without(k, why):
                self.dismiss(k, f"it {why}, so the others went on without it")
                return
        for k in away:
            if self.waits.absence(k) > self.patience and self._go_on_without(k, f"has been away for {self.patience:g} s"):
                return
        waiting = self.waiting_for()
        for k in self.waits.overdue(list(waiting)):
            how = "connected, and silent" if k in self.there else "away"
            self.say(f"waiting for {self.names[k]}: {how} for {waiting[k]:.0f} s")

    def waiting_for(self) -> dict[int, float]:
        """Return the clients that the server waits for, with the seconds of that so far."""
        found = {k: self.waits.silence(k) for k in self._owing()} | {k: self.waits.absence(k) for k in self._away()}
        return {k: seconds for k, seconds in sorted(found.items()) if seconds}

    def _owing(self) -> set[int]:
        """Return the connected clients whose message comes next: they have something to do, and nothing of theirs waits here."""
        return {k for k in self.ball & self.there if not self.unanswered[k] and not self.server.uncomputed[k]}

    def _away(self) -> list[int]:
        return [k for k in range(self.num_clients) if k not in self.there and k not in self.server.schedule.absent]

    def marked(self) -> None:
        """Be told that the server has written a mark."""
        self.heard.clear()

    def _go_on_without(self, k: int, why: str) -> bool:
        """Let the others go on from the newest mark; return False if fewer than `quorum` would be left."""
        absent = self.server.schedule.absent
        rest = self.num_clients - len(absent) - 1
        if not (self.over or k in absent or rest >= self.quorum):
            if not self.told:
                self.told = True
                self.say(f"waiting for {self.names[k]}: without it {rest} clients are left, and quorum is {self.quorum}")
            return False
        self.waits.end(k)
        self.lost(k)
        if self.over:
            absent.add(k)
        elif k not in absent:
            self.say(f"{self.names[k]} {why}; the others go on without it from mark {self._again()}")
            self._leave(k)
        return True

    def _leave(self, k: int) -> None:
        self._send(self.server.handle(Message("left", client=k)))

    def _again(self) -> int:
        """Go back to the newest mark, or to the beginning, with all that are there, and return the mark's number."""
        meter = self.link.meter
        before = meter.wire_by_client()
        found, number = self.book.newest()
        self.book.load(copy.deepcopy(self.first) if found is None else found)
        for key, nbytes in meter.wire_by_client().items():
            before[key] = before.get(key, 0) - nbytes
        for (direction, k), nbytes in before.items():
            if nbytes:
                meter.wire[direction, "repeated", k] += nbytes
        self.incarnation += 1
        self.incarnated(self.incarnation)
        self.heard.clear()
        self.unanswered.clear()
        self.waits.end_silence()
        self.told = False
        for k in sorted(self.there):
            self._start(k, self.labels().get(k, 0))
        return number

    def _start(self, k: int, label: int) -> None:
        self.finished.pop(k, None)
        self.unanswered.pop(k, None)
        self.ball.add(k)
        self.started[k] = self.incarnation
        self.expected.begun(k)
        self.post(k, Start(self.incarnation, label))

    def _send(self, replies: Iterable[Message]) -> None:
        for reply in replies:
            packed = replace(self.link.send("down", reply), incarnation=self.incarnation)
            if reply.step in self.unanswered[reply.client]:
                self.unanswered[reply.client].discard(reply.step)
            else:
                self.ball.add(reply.client)
            self.expected.sent(reply)
            self.post(reply.client, packed)
