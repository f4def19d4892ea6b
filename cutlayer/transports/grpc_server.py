"""The server's end of gRPC: streams that authenticated clients open, their sessions, and one queue that one thread empties."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import BadInput
from ..frame import pieces
from ..printable import printable
from ..wire import Packed
from .grpc_common import METHOD, PROTOCOL, Tls, check_address, grpc, keepalive
from .limits import connection_options
from .member import Start
from .session import FRAME, Closed, Received, Session, control, read_control

HELLO_S = 15.0  # a connection that has not said by then who it is is closed
Refusal = Callable[[str, Mapping[str, Any]], str | None]  # by name and hello: why a party cannot take part


@dataclass
class Peer:
    """A client's process as the server knows it."""

    session: Session
    life: str  # of its process
    connection: int = 0
    alive: bool = False
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What the network threads hand to the thread that computes: up, down, or something received."""

    client: int
    session: Session
    received: Received | None = None
    up: bool = False


class Gate:
    """Listens, lets in who is named, and puts what comes into `events`."""

    def __init__(
        self, address: str, names: Sequence[str], refusal: Refusal, *, tls: Tls | None, keepalive_s: float = 20.0
    ) -> None:
        check_address(address, tls is None, "--listen")
        self.names, self.refusal, self.tls = list(names), refusal, tls
        self.events: queue.Queue[Event] = queue.Queue()
        self.peers: dict[int, Peer] = {}
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(2 * len(names) + 8, thread_name_prefix="cutlayer-stream")
        self.server = grpc.server(
            self.pool,
            options=[("grpc.so_reuseport", 0), *keepalive(keepalive_s), *connection_options(len(names))],
            maximum_concurrent_rpcs=2 * len(names) + 8,
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

    def tell_all(self, **what: Any) -> None:
        """Tell every client that has been here, in order with its messages."""
        for peer in self.peers.values():
            with suppress(Closed):
                peer.session.tell(**what)

    def turn_away(self, k: int, why: str) -> None:
        """End a client's connection for what it did."""
        self.peers[k].session.close()
        self.peers[k].said = {"why": why}

    def untaken(self, who: Iterable[int], patience: float) -> list[int]:
        """Wait until some clients have taken what was sent, and return those towards which nothing has moved for `patience` seconds."""
        return [k for k in who if not self.peers[k].session.settled(patience)]

    def close(self, grace_s: float = 5.0) -> None:
        """Wait until those who are here have taken what was sent, and close the port."""
        for peer in self.peers.values():
            if peer.alive:
                peer.session.settled(grace_s)
            peer.session.close()
        self.server.stop(0.5).wait()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _converse(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        timer = threading.Timer(HELLO_S, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            hello = read_control(next(requests))
            k, peer, connection = self._admit(hello, context)
        except (BadInput, StopIteration, grpc.RpcError) as error:
            yield control(kind="refused", why=str(error), busy=isinstance(error, Busy))
            return
        finally:
            timer.cancel()
        session = peer.session
        context.add_callback(lambda: session.detach(connection))
        welcome = control(kind="welcome", client=k, received=session.received, fresh=peer.said["fresh"])
        # before the first word, because gRPC does not come back here if the connection is gone by then
        threading.Thread(target=self._read, args=(k, peer, connection, requests), daemon=True).start()
        yield welcome
        yield from session.records(connection)
        if session.closed and "why" in peer.said:
            yield control(kind="refused", why=peer.said["why"], busy=False)

    def _admit(self, hello: Mapping[str, Any], context: Any) -> tuple[int, Peer, int]:
        """Return the client, its process and the number of its connection; raises BadInput with the reason if it cannot come in."""
        name = hello.get("name")
        if not isinstance(name, str) or not isinstance(hello.get("life"), str) or not isinstance(hello.get("received"), int):
            raise BadInput("this hello lacks a name, a life or a number")
        if hello.get("protocol") != PROTOCOL:
            raise BadInput(f"this server speaks protocol {PROTOCOL}, and {name!r:.80} protocol {hello.get('protocol')!r:.20}")
        if self.tls is not None and name not in (found := names_in(context)):
            raise BadInput(f"the certificate is made out to {', '.join(sorted(found)) or 'nobody'}, not to {name!r:.80}")
        if name not in self.names:
            raise BadInput(f"{name!r:.80} is not a client of this run; those are {', '.join(self.names)}")
        if (why := self.refusal(name, hello)) is not None:
            raise BadInput(why)
        k = self.names.index(name)
        with self.lock:
            peer = self.peers.get(k)
            known = peer is not None and peer.life == hello["life"] and not peer.session.closed
            if peer is not None and peer.alive and not known:
                raise Busy(f"{name} is connected already; a second connection for the same party is not let in")
            if peer is None or not known:
                if peer is not None:
                    peer.session.close()
                peer = self.peers[k] = Peer(Session(), hello["life"])
            received = hello["received"] if known else 0
            if not 0 <= received <= peer.session.last:
                raise BadInput(f"{name} has received {received} messages, and {peer.session.last} were sent")
            peer.connection, peer.alive = peer.session.attach(received), True
            peer.said = {**hello, "fresh": not known}
            return k, peer, peer.connection

    def _read(self, k: int, peer: Peer, connection: int, requests: Iterator[bytes]) -> None:
        session = peer.session
        if not peer.said["fresh"]:
            self.events.put(Event(k, session, up=True))
        try:
            for record in requests:
                if (received := session.feed(connection, record)) is not None:
                    self.events.put(Event(k, session, received))
                    session.wait_for_room(connection)
        except BadInput as error:
            if session.connection == connection:
                self.turn_away(k, str(error))
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


def names_in(context: Any) -> set[str]:
    """Return the names that a peer's certificate is made out to."""
    found = context.auth_context()
    keys = ("x509_common_name", "x509_subject_alternative_name")
    return {printable(value.decode(errors="replace"), 80) for key in keys for value in found.get(key, ())}
