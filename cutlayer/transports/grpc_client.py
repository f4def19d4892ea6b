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
from ..wire import Message, Packed, loads, unpack
from .grpc_common import METHOD, PROTOCOL, SERVER_NAME, Tls, check_address, check_party_name, check_seconds, grpc, keepalive
from .member import Again, Start
from .session import CONTROL, FRAME, Received, Session, control, read_control

FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 5.0


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
        self.final: Message | None = None  # the trained weights, which the server sends last
        self.over = self.connected = self.ended = False
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
        self.final = None
        while not self.ended:
            try:
                packed = self.poll()
            except RunFailed as error:
                if error is self.fatal and self.final is not None:
                    return  # all is here but the server's word that nobody will ask for this client's states
                raise
            if packed is not None and packed.message.kind == "final":
                self.final = unpack(packed, {})

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
            return loads(received.frame, checked=False)
        if told["kind"] == "stop":
            raise RunFailed(printable(str(told["why"])))
        if told["kind"] == "end":
            self.ended = True
        if told["kind"] == "start":
            self.again.clear()
            self.epoch = received.epoch
            raise Again(Start(int(told["incarnation"]), int(told["label"])))
        return None

    def _check(self) -> None:
        if self.fatal is not None:
            raise self.fatal

    def _keep_connected(self) -> None:
        pause, since, told = FIRST_PAUSE_S, time.monotonic(), False
        while not self.over and self.fatal is None:
            self.connected = False
            try:
                why = self._converse()
            except BadInput as error:
                self.fatal = error
                break
            except (KeyError, TypeError, ValueError) as error:
                self.fatal = BadInput(f"{self.address} answers what no server of this version does ({error!r})")
                break
            if self.over:
                break
            now = time.monotonic()
            if self.connected:
                pause, since, told = FIRST_PAUSE_S, now, False
            if now - since > self.patience:
                self.fatal = RunFailed(
                    f"the server at {self.address} has been away for {self.patience:g} s ({why}); the same command goes on"
                )
                break
            if not told:
                told = True
                self.say(f"no connection to {self.address} ({why}); trying again for {self.patience:g} s")
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)
        self.welcomed.set()

    def _converse(self) -> str:
        """Hold one connection as long as it lasts, and return why it ended; raises BadInput if the server refuses this party."""
        let_in: queue.Queue[int] = queue.Queue()
        call = self.channel.stream_stream(METHOD)(self._requests(let_in), wait_for_ready=False)
        connection = -1
        try:
            for record in call:
                if not self.connected or record[0] == CONTROL:
                    told = read_control(record)
                    if told["kind"] == "refused":
                        if told["busy"]:
                            return printable(str(told["why"]))
                        raise BadInput(f"the server at {self.address} refuses: {printable(str(told['why']))}")
                    connection = self._welcome(told)
                    let_in.put(connection)
                elif (received := self.session.feed(connection, record)) is not None:
                    if received.told.get("kind") == "start":
                        self.again.set()
                    self.inbox.put(received)
            return "the server closed the connection"
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise BadInput(f"the server at {self.address} refuses: {printable(error.details() or '')}") from None
            return reason(error)
        finally:
            self.session.detach(connection)
            let_in.put(-1)
            call.cancel()

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
        self.client, received = int(told["client"]), int(told["received"])
        if not 0 <= received <= self.session.last:
            raise ValueError(f"it has received {received} messages, and {self.session.last} were sent")
        self.connected = True
        connection = self.session.attach(received)
        self.welcomed.set()
        return connection


def reason(error: Exception) -> str:
    """Return why a connection broke, in a few words."""
    code, details = error.code().name, error.details() or ""  # type: ignore[attr-defined]
    if "handshake failed" in details.lower():
        return f"its certificate is not one of this authority's made out to {SERVER_NAME!r}, or has expired: the TLS handshake failed"
    if "connection refused" in details.lower():
        return "nobody listens there"
    if "handshake read failed" in details.lower():
        return "it closed the connection before the TLS handshake: it accepts no more connections for now"
    if "failed to connect" in details.lower():
        return (
            "it ended the TLS handshake: this certificate is of another authority or has expired, or one end is plain text; "
            "or it accepts no more connections for now"
        )
    if code == "RESOURCE_EXHAUSTED":
        return "it accepts no more connections for now"
    return printable(f"{code}: {details}", 120)
