"""The server's end of gRPC: streams that authenticated clients open, their sessions, and one queue that one thread empties."""

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput
from ..frame import MAX_BYTES, pieces
from ..printable import printable
from ..wire import Packed
from .grpc_common import METHOD, PROTOCOL, Tls, check_address, grpc, keepalive
from .identity import Identity, identify
from .limits import connection_options
from .member import Start
from .session import FRAME, Closed, Received, Session, control, read_control

HELLO_S = 15.0  # a connection that has not said by then who it is is closed
STRANGERS = 64  # streams beyond two for each client; they are ended at once
Refusal = Callable[[str, Mapping[str, Any]], str | None]  # by name and hello: why a party cannot take part
Barred = Callable[[Identity], str | None]  # why a certificate or a name is not let in at all


@dataclass
class Peer:
    """A client's process as the server knows it."""

    session: Session
    life: str  # of its process
    identity: Identity
    cancel: Callable[[], Any] = lambda: None  # ends the newest stream
    connection: int = 0
    alive: bool = False
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What the network threads hand to the thread that computes: up, down, something received, or what was wrong with it."""

    client: int
    session: Session
    received: Received | None = None
    up: bool = False
    wrong: str = ""


class Gate:
    """Listens, lets in who is named, and puts what comes into `events`."""

    def __init__(
        self,
        address: str,
        names: Sequence[str],
        refusal: Refusal,
        *,
        tls: Tls | None,
        keepalive_s: float = 20.0,
        barred: Barred = lambda identity: None,
        max_message: int = MAX_BYTES,
    ) -> None:
        check_address(address, tls is None, "--listen")
        self.names, self.refusal, self.tls, self.barred = list(names), refusal, tls, barred
        self.events: queue.Queue[Event] = queue.Queue()
        self.peers: dict[int, Peer] = {}
        self.max_message = max_message  # bytes of a message that a client may send
        self.pending: Counter[tuple[str, ...]] = Counter()  # streams whose hello is not read yet, by the certificate's names
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(2 * len(names) + 8, thread_name_prefix="cutlayer-stream")
        self.server = grpc.server(
            self.pool,
            options=[("grpc.so_reuseport", 0), *keepalive(keepalive_s), *connection_options(len(names))],
            maximum_concurrent_rpcs=2 * len(names) + STRANGERS,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._converse)
        service, method = METHOD[1:].split("/")
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        try:
            self.port = self._listen(address)
        except RuntimeError as error:
            raise BadInput(f"--listen {address!r} cannot be had ({error}); is another server there?") from None
        self.server.start()

    def _listen(self, address: str) -> int:
        if self.tls is None:
            return int(self.server.add_insecure_port(address))
        ca, cert, key = self.tls.read()
        try:
            credentials = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
            port = int(self.server.add_secure_port(address, credentials))
        except ValueError as error:
            raise BadInput(f"--ca, --cert and --key do not make a set ({error}); cutlayer certs demo DIR makes one") from error
        return port

    def post(self, k: int, what: Packed | Start) -> None:
        """Send a client a message of the server, or from where it goes on; a client that is away gets it when it is back."""
        with suppress(Closed):
            if isinstance(what, Start):
                self.peers[k].session.tell(kind="start", **what._asdict())
            else:
                self.peers[k].session.put(FRAME, pieces(what))

    def tell_all(self, but: Collection[Session] = (), **what: Any) -> None:
        """Tell every client that has been here, in order with its messages, except in some sessions."""
        for peer in self.peers.values():
            if peer.session not in but:
                with suppress(Closed):
                    peer.session.tell(**what)

    def turn_away(self, k: int, why: str, may_return: bool = False) -> None:
        """End a client's connection for what it did, or did not do; with `may_return` the client opens another one by itself."""
        with self.lock:
            self.peers[k].said = {"why": why, "busy": may_return}
            self._release(self.peers[k].session)

    def turn_away_barred(self) -> dict[int, str]:
        """End the connections of clients that are barred by now, and return why, by client."""
        found = {k: why for k, peer in self.peers.items() if not peer.session.closed and (why := self.barred(peer.identity))}
        for k, why in found.items():
            self.turn_away(k, why)
        return found

    def _release(self, session: Session) -> None:
        """Close a session and drop what it sent and nobody has looked at; the caller holds the lock."""
        session.close()
        with self.events.mutex:
            self.events.queue = deque(event for event in self.events.queue if event.session is not session)

    def close(self, grace_s: float = 5.0) -> None:
        """Wait until those who are here have taken what was sent, and close the port."""
        for peer in self.peers.values():
            if peer.alive:
                peer.session.settled(grace_s)
            peer.session.close()
        self.server.stop(0.5).wait()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _converse(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        identity = self._identify(context)
        with self._waiting(identity, context):
            try:
                hello = read_control(next(requests))
                k, peer, connection = self._admit(hello, identity, context)
            except (BadInput, StopIteration, grpc.RpcError) as error:
                yield control(kind="refused", why=str(error), busy=isinstance(error, Busy))
                return
        session = peer.session
        context.add_callback(lambda: session.detach(connection))
        welcome = control(kind="welcome", client=k, received=session.received, fresh=peer.said["fresh"])
        # before the first word, because gRPC does not come back here if the connection is gone by then
        threading.Thread(target=self._read, args=(k, peer, connection, requests), daemon=True).start()
        yield welcome
        yield from session.records(connection)
        if session.closed and "why" in peer.said:
            yield control(kind="refused", why=peer.said["why"], busy=peer.said.get("busy", False))

    def _identify(self, context: Any) -> Identity:
        """Return who opens a stream, empty in plain text; ends the stream if it is nobody who may take part.

        The status that ends a stream waits for nobody, so a stranger occupies no thread.
        """
        if self.tls is None:
            return Identity(frozenset())
        try:
            identity = identify(context)
        except ValueError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"the certificate cannot be read ({error})"[:500])
        if identity.names.isdisjoint(self.names):
            made_out = printable(", ".join(sorted(identity.names)), 80) or "nobody"
            why = f"the certificate is made out to {made_out}: {made_out!r} is not a client of this run; those are {', '.join(self.names)}"
            context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        if (barred := self.barred(identity)) is not None:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, barred)
        return identity

    @contextmanager
    def _waiting(self, identity: Identity, context: Any) -> Iterator[None]:
        """Let a stream wait for its hello, for HELLO_S seconds; ends it if another one of the same names does so already."""
        names = tuple(sorted(identity.names.intersection(self.names)))
        with self.lock:
            full = self.pending[names] >= (len(names) or len(self.names))
            self.pending[names] += not full
        if full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{', '.join(names)}: another stream is being opened")
        timer = threading.Timer(HELLO_S, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self.lock:
                self.pending[names] -= 1

    def _admit(self, hello: Mapping[str, Any], identity: Identity, context: Any) -> tuple[int, Peer, int]:
        """Return the client, its process and the number of its connection; raises BadInput with the reason if it cannot come in."""
        name = hello.get("name")
        if not isinstance(name, str) or not isinstance(hello.get("life"), str) or not isinstance(hello.get("received"), int):
            raise BadInput("this hello lacks a name, a life or a number")
        if hello.get("protocol") != PROTOCOL:
            raise BadInput(f"this server speaks protocol {PROTOCOL}, and {name!r:.80} protocol {hello.get('protocol')!r:.20}")
        if self.tls is not None and name not in identity.names:
            raise BadInput(
                f"the certificate is made out to {printable(', '.join(sorted(identity.names)), 80)}, not to {name!r:.80}"
            )
        if name not in self.names:
            raise BadInput(f"{name!r:.80} is not a client of this run; those are {', '.join(self.names)}")
        identity = identity if self.tls is not None else Identity(frozenset({name}))
        if (why := self.barred(identity)) is not None or (why := self.refusal(name, hello)) is not None:
            raise BadInput(why)
        k = self.names.index(name)
        with self.lock:
            peer = self.peers.get(k)
            known = peer is not None and peer.life == hello["life"] and not peer.session.closed
            if peer is not None and peer.alive and not known:
                raise Busy(f"{name} is connected already; a second connection for the same party is not let in")
            if peer is None or not known:
                if peer is not None:
                    peer.cancel()
                    self._release(peer.session)
                peer = self.peers[k] = Peer(Session(), hello["life"], identity)
                peer.session.max_message = lambda: self.max_message
            received = hello["received"] if known else 0
            if not 0 <= received <= peer.session.last:
                raise BadInput(f"{name} has received {received} messages, and {peer.session.last} were sent")
            peer.cancel()  # of an older stream of this client
            peer.cancel = context.cancel
            peer.connection, peer.alive = peer.session.attach(received), True
            peer.said = {**hello, "fresh": not known}
            return k, peer, peer.connection

    def _hand_on(self, event: Event) -> None:
        with self.lock:
            if not event.session.closed:
                self.events.put(event)

    def _read(self, k: int, peer: Peer, connection: int, requests: Iterator[bytes]) -> None:
        session = peer.session
        if not peer.said["fresh"]:
            self.events.put(Event(k, session, up=True))
        try:
            session.wait_for_room(connection)  # of what came on an earlier connection
            for record in requests:
                if (received := session.feed(connection, record)) is not None:
                    self._hand_on(Event(k, session, received))
                    session.wait_for_room(connection)
        except BadInput as error:
            if session.connection == connection and self.peers[k] is peer:
                self.turn_away(k, str(error))
                self.events.put(Event(k, session, wrong=str(error)))
        except Exception:  # gRPC raises whatever broke the connection; the session waits for the next one
            pass
        finally:
            with self.lock:
                if self.peers.get(k) is peer and peer.connection == connection:
                    peer.alive = False
                    self.events.put(Event(k, session))
            session.detach(connection)


class Busy(BadInput):
    """Somebody is there already; it may be a connection that nobody has noticed to be dead."""
