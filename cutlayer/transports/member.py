"""A client's half of a run across processes: its program, its own marks, and the line to the server."""

import copy
import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .. import checkpoint
from ..client import Client
from ..errors import BadInput, RunFailed
from ..meter import Meter
from ..program import Method
from ..server_checks import ServerChecks
from ..wire import Codecs, Collect, Exchange, Message, Packed, pack, unpack
from .link import find

KEEP = 4  # the server keeps two marks, and a client may be one state ahead of each
MAX_RETURNS = 1000  # to one state; parties that die and come back cause far fewer


class Start(NamedTuple):
    """From which of its states a client goes on, and the number that all messages carry from then on."""

    incarnation: int
    label: int  # 0: as it was built


class Again(Exception):
    """The server has gone back to a mark, and this client has to."""

    def __init__(self, start: Start) -> None:
        self.start = start


class Finished(Exception):
    """Training is over, and `final` has the weights of this client's modules."""

    def __init__(self, final: Message) -> None:
        self.final = final


class Line(Protocol):
    """The line to the server, one transport's own.

    `send`, `receive`, `bye` and `saved` raise Again when the server has gone back to a mark; the first three raise Finished when the final
    weights come. `bye` waits for them; `saved` says that they are saved and waits until the server needs this client no more.
    """

    def hello(self, held: Callable[[], list[int]]) -> None: ...
    def send(self, packed: Packed, label: int) -> None: ...
    def receive(self) -> Packed: ...
    def bye(self, figures: Mapping[str, Any]) -> None: ...
    def saved(self) -> None: ...


class Member:
    """Runs one client's program over a line, and keeps its state whenever it waits for a sync or a mark.

    A state is named by its label, which no other state of this client ever has; states lie in `folder`, so that the client may be
    killed at any moment. `reproducible` tells the server whether this client's samples are the same when read again under one seed.
    """

    def __init__(
        self, client: Client, method: Method, codecs: Codecs, meter: Meter, program: Callable[[], Exchange[None]], folder: Path,
        checks: ServerChecks, reproducible: bool = True,
    ) -> None:  # fmt: skip
        self.checks = checks
        self.client, self.method, self.codecs, self.meter = client, method, codecs, meter
        self.program, self.folder, self.reproducible = program, folder, reproducible
        self.built = copy.deepcopy(self._state())
        self.start = Start(0, 0)
        self.label = 0
        self.returns: Counter[int] = Counter()  # starts from each state, by its label
        self.inbox: deque[Message] = deque()

    def play(self, line: Line, save: Callable[[Message], None] = lambda final: None) -> None:
        """Run to the end of training, and `save` the final weights, which may come at any time."""
        line.hello(self.held)
        start: Start | None = None
        while True:
            try:
                start = start or told_to_start(line)
                self._go_on(start)
                program = self.program()
                try:
                    self._run(program, line)
                finally:
                    program.close()
                line.bye({**self.meter.state(), "reproducible": self.reproducible})
            except Again as again:
                start = again.start
            except Finished as finished:
                save(finished.final)
                try:
                    line.saved()
                    return
                except Again as again:  # the server was started again from a mark before its results were written
                    start = again.start

    def held(self) -> list[int]:
        """Return the labels of the states that are there."""
        return [int(path.name) for path in checkpoint.marks(self.folder)]

    def _run(self, program: Exchange[None], line: Line) -> None:
        reply: Message | None = None
        while True:
            try:
                sent = program.send(reply)
            except StopIteration:
                return
            if isinstance(sent, Collect):
                reply = self._answer(line, sent.step)
                continue
            packed = replace(pack(sent, self.codecs), incarnation=self.start.incarnation)
            if (sent.is_sync and not sent.is_hello) or sent.is_mark:
                self._keep()
            self.meter.count("up", packed)
            self.checks.asked(sent)
            line.send(packed, self.label)
            reply = self._answer(line, sent.step) if sent.reply == "wait" else None

    def _answer(self, line: Line, step: int) -> Message:
        while (found := find(self.inbox, step)) is None:
            packed = line.receive()
            if packed.incarnation == self.start.incarnation:
                self.checks.arriving(packed, self.codecs)
                self.meter.count("down", packed)
                message = unpack(packed, self.codecs)
                self.checks.check(message)
                self.inbox.append(message)
        self.inbox.remove(found)
        return found

    def _state(self) -> dict[str, Any]:
        return {
            "client": self.client.state(), "method": self.method.state(), "meter": self.meter.state(),
            "codecs": {role: codec.state() for role, codec in self.codecs.items()},
        }  # fmt: skip

    def _keep(self) -> None:
        """Keep the state under a new label, before the message is sent that makes it needed."""
        for path in checkpoint.marks(self.folder):
            if int(path.name) > self.label:  # of a future that was given up, or of another run
                shutil.rmtree(path)
        self.label = max(self.label, self.start.incarnation << 32) + 1
        checkpoint.save(self.folder, f"{self.label:020d}", self._state(), KEEP)

    def _go_on(self, start: Start) -> None:
        self.returns[start.label] += 1
        if self.returns[start.label] > MAX_RETURNS:
            raise BadInput(f"the server sent this client back to one of its states {MAX_RETURNS} times; no server does")
        state = self.built
        if start.label:
            path = self.folder / f"{start.label:020d}"
            if not path.is_dir():
                raise BadInput(
                    f"{self.folder} has not the state that the server asks for; give this client its own folder again"
                )
            state = checkpoint.load(path, self.meter.device)
        self.start, self.label = start, start.label
        self.inbox.clear()
        self.checks.begun()
        state = copy.deepcopy(state)
        self.client.load(state["client"])
        self.method.load(state["method"])
        self.meter.load(state["meter"])
        for role, codec in self.codecs.items():
            codec.load(state["codecs"][role])


def told_to_start(line: Line) -> Start:
    """Wait until the server says where to start; raises RunFailed if it says something else."""
    try:
        line.receive()
    except Again as again:
        return again.start
    raise RunFailed("the server sent a message before it said where to start")


def read_start(told: Mapping[str, Any]) -> Start:
    """Return where a control record says to start; raises BadInput if it does not say it."""
    incarnation, label = told.get("incarnation"), told.get("label")
    if not (type(incarnation) is int and 0 <= incarnation < 2**32 and type(label) is int and 0 <= label < 2**63):
        raise BadInput(f"a start has incarnation {incarnation!r:.40} and label {label!r:.40}; both are whole numbers")
    return Start(incarnation, label)
