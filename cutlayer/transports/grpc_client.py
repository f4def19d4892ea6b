"""A client's end of gRPC: one stream that is opened again whenever it breaks, and the line that a member talks over."""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import BadInput, RunFailed
from ..frame import pieces
from ..printable import printable
from ..wire import Packed, loads, unpack
from .grpc_common import (
    METHOD,
    PROTOCOL,
    SERVER_NAME,
    Tls,
    check_address,
    check_party_name,
    check_seconds,
    grpc,
    keepalive,
    reason,
)
from .member import Again, Finished, read_start
from .session import CONTROL, FRAME, MAX_UNTAKEN, MAX_UNTAKEN_BYTES, Received, Session, control, read_control

FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 5.0
WELCOME_S = 15.0  # a server that has accepted a connection and says nothing for so long is away


class NetworkLine:
    """A line to the server over gRPC. Its own thread keeps the connection; the caller's thread computes.

    `say` is told in a line what happens to the connection. Raises BadInput if the server refuses this party, and RunFailed if it stays
    away for `patience` seconds.
    """

    def __init__(
        self, address: str, name: str, about: Mapping[str, Any], *, tls: Tls | None, patience: float = 300.0,
        keepalive_s: float = 20.0, say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        check_party_name("--as", name)
        check_address(address, tls is None, "--server")
        check_seconds("--patience", patience)
        self.address, self.name, self.about, self.patience, self.say = address, name, dict(about), patience, say
        self.life = secrets.token_hex(8)
        self.session = Session()
        self.inbox: queue.Queue[Received] = queue.Queue()
        self.held: Callable[[], list[int]] | None = None
        self.fatal: Exception | None = None
        self.again = threading.Event()  # a start has come that nobody has looked at yet
        self.epoch = self.session.epoch  # of the session in which the last start came
        self.welcomed = threading.Event()
        self.client, self.samples = -1, 0
        self.over = self.connected = self.ended = False
        self.finished = False  # the final weights have come
        self.moved = 0  # messages of both ends that were taken when the connection began
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
            ("grpc.initial_reconnect_backoff_ms", int(1000 * FIRST_PAUSE_S)),
            ("grpc.max_reconnect_backoff_ms", int(1000 * LAST_PAUSE_S)),
            *keepalive(keepalive_s),
        ]
        if tls is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            ca, cert, key = tls.read()
            credentials = grpc.ssl_channel_credentials(ca, key, cert)
            self.channel = grpc.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", SERVER_NAME)])
        self.thread = threading.Thread(target=self._keep_connected, name="cutlayer-line", daemon=True)
        self.thread.start()

    def connect(self) -> int:
        """Return this client's number as soon as the server has let it in."""
        while not self.welcomed.wait(0.1):
            self._check()
        self._check()
        return self.client

    def hello(self, held: Callable[[], list[int]]) -> None:
        self.held = held
        self._ready()

    def _ready(self) -> None:
        assert self.held is not None
        self.session.tell(kind="ready", held=self.held(), samples=self.samples)

    def send(self, packed: Packed, label: int) -> None:
        while True:
            self._check()
            while self.again.is_set() or self.session.epoch != self.epoch:  # what came before the start belongs to before
                self.poll()
            if self.session.put(FRAME, pieces(packed), label, block=True, timeout=0.2, epoch=self.epoch):
                return

    def receive(self) -> Packed:
        while (packed := self.poll()) is None:
            pass
        return packed

    def poll(self) -> Packed | None:
        """Return the next message, or None if none comes within a moment."""
        try:
            received = self.inbox.get(timeout=0.2)
        except queue.Empty:
            self._check()
            return None
        return self._look(received)

    def bye(self, figures: Mapping[str, Any]) -> None:
        self.session.tell(kind="bye", figures=figures)
        while True:  # until the final weights come
            self.poll()

    def saved(self) -> None:
        """Say that the final weights are saved; return when the server says that it needs no state of this client, or is silent or away.

        A server that is silent for `patience` seconds may be writing results still: `ended` is false then, and the states stay.
        """
        self.session.tell(kind="saved")
        end = time.monotonic() + self.patience
        while not self.ended and time.monotonic() < end:
            try:
                self.poll()
            except Finished:  # weights that were sent twice
                continue
            except (RunFailed, BadInput) as error:
                if error is not self.fatal:
                    raise
                return

    def close(self) -> None:
        """End the connection, after the server's last words have been acknowledged."""
        self.over = True
        end = time.monotonic() + 1.0
        while self.connected and self.session.told_taken < self.session.taken and time.monotonic() < end:
            time.sleep(0.01)
        self.session.close()
        self.channel.close()
        self.thread.join(5.0)  # gRPC must not be at work when the interpreter ends

    def _look(self, received: Received) -> Packed | None:
        """Return a frame; raises what a record tells to do."""
        told = received.told
        if told.get("kind") in ("end", "stop"):
            self.over = True  # before the server hears that this was taken, because then it closes the connection
        self.session.take(received)
        if received.frame is not None:
            packed = loads(received.frame, checked=False)
            if packed.message.kind == "final":
                self.finished = True
                raise Finished(unpack(packed, {}))
            return packed
        kind = told.get("kind")
        if kind == "stop":
            raise RunFailed(printable(str(told.get("why", "the server stopped and gave no reason"))).partition("\n")[0])
        if kind == "end" and not self.finished:
            raise RunFailed(
                "the server says that training is over, and it has sent no final weights; when it offers them again, the same command "
                "gets them"
            )
        if kind == "end":
            self.ended = True
        elif kind == "start":
            self.again.clear()
            self.epoch = received.epoch
            raise Again(read_start(told))
        else:
            raise BadInput(f"{self.address} sent a control record of kind {kind!r:.80}; start, stop and end are sent")
        return None

    def _check(self) -> None:
        if self.fatal is not None:
            raise self.fatal

    def _keep_connected(self) -> None:
        """Open the connection again whenever it breaks, until the end, or until the server has been away for `patience` seconds.

        The server is away while no connection is welcomed. A connection ends that count if it lasted for `patience` seconds, or if the
        server sent or took something on it.
        """
        pause, away, told = FIRST_PAUSE_S, 0.0, False
        while not self.over and self.fatal is None:
            self.connected = False
            begin = time.monotonic()
            try:
                why = self._converse()
            except BadInput as error:
                self.fatal = error
                break
            except Exception as error:  # a stranger's server may send anything
                self.fatal = BadInput(f"{self.address} answers what no server of this version does ({error!r:.200})")
                break
            if self.over:
                break
            lasted = time.monotonic() - begin
            if not self.connected:
                away += lasted
            elif lasted > self.patience or self.session.acked + self.session.received > self.moved:
                pause, away, told = FIRST_PAUSE_S, 0.0, False
            if away > self.patience:
                self.fatal = RunFailed(
                    f"the server at {self.address} has been away for {self.patience:g} s ({why}); the same command goes on"
                )
                break
            if not told:
                told = True
                self.say(f"no connection to {self.address} ({why}); trying again for {self.patience:g} s")
            time.sleep(pause)
            away += pause
            pause = min(2 * pause, LAST_PAUSE_S)
        self.welcomed.set()

    def _converse(self) -> str:
        """Hold one connection as long as it lasts, and return why it ended; raises BadInput if the server refuses this party."""
        let_in: queue.Queue[int] = queue.Queue()
        call = self.channel.stream_stream(METHOD)(self._requests(let_in), wait_for_ready=False)
        connection = -1
        silence = threading.Timer(min(self.patience, WELCOME_S), lambda: self.connected or call.cancel())
        silence.daemon = True
        silence.start()
        try:
            for record in call:
                if not self.connected or record[:1] == bytes([CONTROL]):
                    told = read_control(record)
                    if told["kind"] == "refused":
                        if told["busy"]:
                            return printable(str(told["why"]))
                        raise BadInput(f"the server at {self.address} refuses: {printable(str(told['why']))}")
                    if self.connected:
                        raise BadInput(f"{self.address} welcomes this client twice on one connection; no server does")
                    connection = self._welcome(told)
                    let_in.put(connection)
                elif (received := self.session.feed(connection, record)) is not None:
                    self._put(received)
            return "the server closed the connection"
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise BadInput(f"the server at {self.address} refuses: {printable(error.details() or '')}") from None
            if error.code() is grpc.StatusCode.CANCELLED and not self.connected:
                return f"it said nothing for {min(self.patience, WELCOME_S):g} s"
            return reason(error)
        finally:
            silence.cancel()
            self.session.detach(connection)
            let_in.put(-1)
            call.cancel()

    def _put(self, received: Received) -> None:
        """Hand a message to the thread that computes; raises BadInput if more lie there than any server sends unasked."""
        if received.told.get("kind") == "start":
            self.again.set()
        self.inbox.put(received)
        if self.inbox.qsize() > MAX_UNTAKEN and self.session.untaken > MAX_UNTAKEN_BYTES:
            raise BadInput(f"{self.address} sent {self.inbox.qsize()} messages that nobody waits for; no server does")

    def _requests(self, let_in: "queue.Queue[int]") -> Iterator[bytes]:
        hello = {"name": self.name, "life": self.life, "received": self.session.received, "protocol": PROTOCOL, **self.about}
        yield control(kind="hello", **hello)
        if (connection := let_in.get()) >= 0:
            yield from self.session.records(connection)

    def _welcome(self, told: Mapping[str, Any]) -> int:
        fresh, again = bool(told["fresh"]), self.welcomed.is_set()
        if fresh and again:  # a server that knows nothing of us: everything begins anew, from a mark
            self.session.reset()
            if self.held is not None:
                self._ready()
            else:  # nobody tells a line that only asks to start
                self.epoch = self.session.epoch
        if again:
            self.say(f"connected to {self.address} again")
        client, received = told["client"], told["received"]
        if not (type(client) is int and type(received) is int) or (again and client != self.client):
            raise ValueError(f"client {client!r:.40} and {received!r:.40} received messages")
        self.client = client
        if not 0 <= received <= self.session.last:
            raise ValueError(f"it has received {received} messages, and {self.session.last} were sent")
        self.connected = True
        connection = self.session.attach(received)
        self.moved = self.session.acked + self.session.received
        self.welcomed.set()
        return connection
