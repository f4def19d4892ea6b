"""How many connections a server accepts, so that descriptors for its files are always free."""

from typing import Any

from ..descriptors import count_open_descriptors, raise_descriptor_limit
from ..errors import BadInput

RESERVE = 64  # descriptors for marks, records, the status page, and gRPC itself
MAX_STRANGERS = 1000  # connections beyond the clients' own, each of which costs memory
HANDSHAKE_S = 10.0  # a connection that has not completed its handshakes by then is closed
IDLE_S = 15.0  # a connection without a stream is closed after so many seconds


def max_connections(num_clients: int) -> int:
    """Return how many connections may be open at once; raises BadInput if the limit of open files is too low for the clients.

    A client needs two: a new one, and an old one that nobody has noticed to be dead.
    """
    limit, needed = raise_descriptor_limit(), 2 * num_clients
    free = limit - count_open_descriptors() - RESERVE
    if free < needed:
        raise BadInput(
            f"the limit of open files is {limit}, and {num_clients} clients need at least {limit - free + needed}; "
            "raise the hard limit (ulimit -Hn, or LimitNOFILE= of the service)"
        )
    return min(free, needed + MAX_STRANGERS)


def connection_options(num_clients: int) -> list[tuple[str, Any]]:
    """Return gRPC's options that bound connections and end silent ones."""
    return [
        ("grpc.max_allowed_incoming_connections", max_connections(num_clients)),
        ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_S)),
        ("grpc.max_connection_idle_ms", int(1000 * IDLE_S)),
    ]
