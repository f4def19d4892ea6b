"""The story of a server: listen, wait until enough clients are there, compute, go back to a mark when one dies."""

import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .access import Access
from .data.partition import Partition
from .errors import BadInput, RunFailed
from .expected import MAX_SAMPLES, check_labels, figures
from .final_weights import FinalOffer, pending_clients, stored_weights
from .handshake import about, disagreement, doubts
from .offences import times
from .outputs import Result
from .printable import printable
from .recipes.recipe import Recipe, make
from .revoked import Revoked
from .rounds import Progress
from .run import data_of, parts_of, task_of
from .run_folder import check_folder
from .sides import ServerSide
from .transports import waits
from .transports.grpc_common import Tls, check_party_name, check_seconds
from .transports.grpc_server import Event, Gate
from .transports.session import Received, Session
from .wire import loads

TICK_S = 0.1
Watch = Callable[["Serving"], None]


class Serving:
    """A server at work. One thread computes: it takes what the network threads have put into the gate's queue.

    `wait_for` clients have to be there within `start_timeout` seconds for the run to begin; those of `names` that come later may take
    part only with `late_join`. Raises BadInput, and RunFailed if training breaks or too few come.
    """

    def __init__(
        self, recipe: Recipe, out: Path, *, listen: str, tls: Tls | None = None, names: Sequence[str] = (), wait_for: int | None = None,
        start_timeout: float = 600.0, patience: float = 120.0, turn_timeout: float = 600.0, quorum: int = 1, late_join: bool = False,
        keepalive_s: float = 20.0, revoked: Path | None = None, max_offences: int = 5,
        say: Callable[[str], None] = lambda line: None, progress: Progress | None = None,
        watch: Watch = lambda serving: None,
    ) -> None:  # fmt: skip
        recipe = make({**recipe.flat(), "transport": "grpc"})
        n = recipe.num_clients
        self.names = list(names) or [f"client{k}" for k in range(n)]
        for name in self.names:
            check_party_name("--clients", name)
        if len(self.names) != n or len(set(self.names)) != n:
            raise BadInput(f"--clients {','.join(self.names)}: the recipe has num_clients = {n}; name each of them once")
        self.wait_for = n if wait_for is None else wait_for
        for flag, value in (("--wait-for", self.wait_for), ("--quorum", quorum)):
            if not 1 <= value <= n:
                raise BadInput(f"{flag} {value}: from 1 to num_clients = {n}")
        for flag, seconds in (("--start-timeout", start_timeout), ("--patience", patience), ("--turn-timeout", turn_timeout)):
            check_seconds(flag, seconds)
        self.recipe, self.start_timeout, self.late_join, self.say, self.watch = recipe, start_timeout, late_join, say, watch
        check_folder(recipe, out)
        self.access = Access(self.names, out, Revoked(revoked, tls.ca if tls else None, say) if revoked else None, max_offences)
        data = data_of(recipe).to(recipe.device)
        elsewhere = Partition(data.train, (torch.empty(0, dtype=torch.long),) * n, "elsewhere", torch.zeros(0, 0))
        self.side = ServerSide(
            recipe, parts_of(recipe, data), task_of(recipe), elsewhere, data.train, out, release=data.release, data=data, progress=progress,
            post=self._post, patience=patience, turn_timeout=turn_timeout, quorum=quorum, dismiss=self._dismiss, say=say,
            names=self.names,
        )  # fmt: skip
        self.host = self.side.host
        self.mine = about(recipe, data)
        self.refused: dict[str, str] = {}  # the last reason by client
        self.members: set[int] = set()  # who has been here
        self.samples: dict[int, int] = {}
        self.ready: dict[int, Session] = {}  # in which a client has said what it holds
        self.seen: dict[int, float] = {}  # when something came from a client, by the monotonic clock
        self.unacknowledged: dict[int, deque[tuple[Session, Received]]] = {}  # messages that wait to be computed
        self.began = self.looked = time.monotonic()
        self.stopping, self.idle = False, 0.0  # seconds without anything to do since `looked`
        self.missing: dict[str, str] = {}  # who was named before the start, and why
        self.gate = Gate(
            listen, self.names, self._refusal, tls=tls, keepalive_s=keepalive_s, barred=self.access.barred,
            max_message=self.host.expected.largest,
        )  # fmt: skip

    def run(self) -> Result:
        """Serve to the end of training and return the result; raises KeyboardInterrupt between two messages after `stop`."""
        if (self.side.out / "summary.json").exists():
            return self._offer_again()
        self.began = self.looked = time.monotonic()
        torch.set_num_threads(self.recipe.num_threads)
        try:
            while not self.host.done:
                if not self.host.begun and not self._barrier(time.monotonic() - self.began):
                    raise RunFailed(self._missing())
                if (event := self._next_event()) is not None:
                    self._take(event)
                self._count_idle()
                self.watch(self)
                if self.stopping:
                    raise KeyboardInterrupt
            self.offer = self._offer(self._final_weights, self._participants())
            self._hand_out()
            result = self._finish()
            self.offer.wait(self.host.patience, self._next_event, lambda: self.stopping)
            return result
        except RunFailed as error:
            self.gate.tell_all(kind="stop", why=f"the server stopped: {error}")
            raise
        finally:
            self.gate.close()

    def _next_event(self) -> Event | None:
        """Return what the network threads have put into the queue, or None after a moment; clients that were revoked are cut off."""
        self._check_access()
        begin = time.monotonic()
        try:
            return self.gate.events.get(timeout=TICK_S)
        except queue.Empty:
            return None
        finally:
            self.idle += time.monotonic() - begin

    def _count_idle(self) -> None:
        """Tell the host every TICK_S how long nothing came, and whose bytes moved since then."""
        now = time.monotonic()
        if now - self.looked >= TICK_S:
            moved = {k for k, peer in list(self.gate.peers.items()) if peer.session.progressed >= self.looked}
            self.host.waited(self.idle, moved)
            self.looked, self.idle = now, 0.0

    def waiting_for(self) -> dict[str, float]:
        """Return the names of the clients that the server waits for, with the seconds of that so far."""
        if self.host.begun:
            return {self.names[k]: seconds for k, seconds in self.host.waiting_for().items()}
        return {name: time.monotonic() - self.began for k, name in enumerate(self.names) if k not in self.host.there}

    def stop(self) -> None:
        """Stop when the message in hand is done, as Ctrl-C does; the marks stay."""
        self.stopping = True

    def _finish(self) -> Result:
        nowhere = torch.zeros(1, dtype=torch.long)  # only how many there are is known, and costs no memory
        shares = tuple(nowhere.expand(self.samples.get(k, 0)) for k in range(len(self.names)))
        self.side.outputs.clients = replace(self.side.outputs.clients, shares=shares)
        return self.side.finish()

    def _offer(self, weights: Callable[[int], Mapping[str, Tensor]], pending: Mapping[str, int]) -> FinalOffer:
        return FinalOffer(self.gate, self.names, self.side.out, weights, pending, self.host.excluded, self.say)

    def _participants(self) -> dict[str, int]:
        """Return the clients that took part, each with the label of its newest state."""
        labels = self.side.parties.labels
        return {self.names[k]: labels.get(k, 0) for k in sorted(self.members | labels.keys())}

    def _final_weights(self, k: int) -> Mapping[str, Tensor]:
        models = self.side.parties.server.models()
        return next((model for model in models if model[0] == k), models[0])[1]

    def _hand_out(self) -> None:
        """Send the final weights to the clients that are there, while the results are written."""
        self.offer.send(sorted(self.host.there))

    def _offer_again(self) -> Result:
        """Offer the final weights of a finished run, and return its result."""
        pending = pending_clients(self.side.out, self.names)
        waiting, folder = ", ".join(pending), self.side.out / "weights"
        self.say(
            f"training is finished; offering the final weights to {waiting} until nothing moves for {self.host.patience:g} s"
        )
        try:
            offer = self._offer(lambda k: stored_weights(folder, k), pending)
            offer.wait(self.host.patience, self._next_event, lambda: self.stopping)
            return self.side.outputs.finished(self.side.parties)
        finally:
            self.gate.close()

    def _barrier(self, waited: float) -> bool:
        """Begin if enough clients are there, and return False if they have not come in time."""
        if len(self.host.there) >= self.wait_for:
            self.host.begin()
            return True
        if waited >= waits.NAMED_AFTER_S:
            self._name_missing()
        return waited <= self.start_timeout

    def _name_missing(self) -> None:
        """Say who keeps the run from beginning, once for each reason."""
        for k, name in enumerate(self.names):
            connected = k in self.gate.peers and self.gate.peers[k].alive
            why = "connected, and has not said that it is ready" if connected else "not connected"
            if k not in self.host.there and self.missing.get(name) != why:
                self.missing[name] = why
                self.say(f"waiting for {name}: {why}")

    def _missing(self) -> str:
        missing = [name for k, name in enumerate(self.names) if k not in self.host.there]
        return f"{len(self.host.there)} of {self.wait_for} clients came within {self.start_timeout:g} s; missing: {', '.join(missing)}"

    def _post(self, k: int, what: Any) -> None:
        self.gate.post(k, what)

    def _dismiss(self, k: int, why: str) -> None:
        self.gate.turn_away(k, f"{why}; it may take part from the next round on", may_return=True)

    def _refusal(self, name: str, hello: Mapping[str, Any]) -> str | None:
        """Return why a party cannot take part; called by a network thread."""
        if (why := self.access.refusal(name)) is not None:
            return why
        k = self.names.index(name)
        if self.host.begun and k not in self.members and not self.late_join:
            return f"the run has begun without {name}, and this server was not started with --late-join"
        if (why := disagreement(self.mine, hello, name)) is not None:
            if self.refused.get(name) != why:
                self.refused[name] = why
                self.say(f"{name} is refused: {why}")
            return why
        if k not in self.members and (said := doubts(self.mine, hello)):
            self.say(f"{name}: {'; '.join(said)}")
        return None

    def _take(self, event: Event) -> None:
        """Deal with what a network thread has put into the queue."""
        k, received = event.client, event.received
        if self.gate.peers[k].session is not event.session:
            return  # of a process that is gone
        if event.wrong:
            self._turn_away(k, printable(event.wrong))
            return
        if received is None:
            if not event.up:
                self.host.lost(k)
            elif self.ready.get(k) is event.session:  # else its line broke before it said what it holds; that comes first
                self.host.back(k)
            return
        self.seen[k] = time.monotonic()
        try:
            if received.frame is not None:
                self.host.frame(k, loads(received.frame, checked=False), received.label)
            elif received.told["kind"] == "ready":
                self._ready(k, received.told)
            elif received.told["kind"] == "bye":
                self.host.bye(k, figures(received.told["figures"]))
        except (
            RunFailed,
            OSError,
            SafetensorError,
        ):  # training itself broke, or a file cannot be written, whoever sent the last message
            raise
        except Exception as error:  # a stranger's message may raise anything
            self._turn_away(k, printable(str(error).partition("\n")[0]) or type(error).__name__)
        if received.frame is None:
            event.session.take(received)
        else:
            self.unacknowledged.setdefault(k, deque()).append((event.session, received))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Acknowledge the messages that are computed; a client that runs ahead of the others is stopped by its session's window."""
        for k, held in list(self.unacknowledged.items()):
            while len(held) > self.host.server.uncomputed[k]:
                session, received = held.popleft()
                session.take(received)
            if not held:
                del self.unacknowledged[k]

    def _turn_away(self, k: int, why: str) -> None:
        """End the connection of a client that sent what cannot be used, undo what it did, and go on without it after too many times."""
        name = self.names[k]
        self.say(f"{name} is turned away: {why}")
        self.gate.turn_away(k, f"it sent what this server cannot use ({why})")
        if self.access.offences.add(name):
            self.say(f"{name} is excluded; to let it in again: cutlayer readmit {self.side.out} {name}")
            self.host.exclude(k, f"was turned away {times(self.access.offences.count(name))}")
        else:
            self.host.expel(k)

    def _check_access(self) -> None:
        """Take note of the operator's revocations and requests, and end the connections of clients that were revoked."""
        for k, why in self.gate.turn_away_barred().items() if self.access.refresh() else ():
            self.say(f"{self.names[k]} is turned away: {why}")
            self.host.exclude(k, "was revoked")

    def _ready(self, k: int, told: Mapping[str, Any]) -> None:
        held, samples = check_labels(told["held"]), told["samples"]
        if type(samples) is not int or not 0 <= samples <= MAX_SAMPLES:
            raise BadInput(f"samples = {samples!r:.40} is no count; whole numbers up to {MAX_SAMPLES} are")
        if k not in self.members:
            self.say(f"{self.names[k]} is here with {samples} samples")
        self.members.add(k)
        self.samples[k] = self.host.expected.counts[k] = samples
        self.ready[k] = self.gate.peers[k].session
        self.host.hello(k, held)
