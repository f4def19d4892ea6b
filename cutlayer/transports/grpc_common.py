"""What both ends of a gRPC connection agree on: the method's name, keepalive, and who a certificate says that one is."""

import ipaddress
import math
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BadInput
from ..printable import printable

try:
    import grpc
except ImportError as error:
    raise BadInput("serve, join and predict need grpcio; pip install 'cutlayer[grpc]'") from error

METHOD = "/cutlayer.v1.Cut/Converse"
SERVER_NAME = "server"  # what the server's certificate is made out to
PROTOCOL = 1
PARTY_NAME = re.compile(r"(?=.{1,64}\Z)[\w@+-](?:[\w.@+ -]*[\w.@+-])?")


class Tls(NamedTuple):
    """Files in PEM: the certificate of the authority that all parties trust, and this party's own with its key."""

    ca: Path
    cert: Path
    key: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return the files' bytes; raises BadInput naming the one that cannot be read, or a key that others can read."""
        found = []
        for name, path in self._asdict().items():
            try:
                found.append(path.read_bytes())
                mode, owner = path.stat().st_mode, path.stat().st_uid
            except OSError as error:
                raise BadInput(
                    f"--{name} {str(path)!r}: {error.strerror}; cutlayer certs demo DIR makes a whole set"
                ) from error
            if name == "key" and owner == os.getuid() and mode & 0o077:  # as ssh does
                raise BadInput(
                    f"--key {str(path)!r} can be read by others (mode {mode & 0o777:o}); chmod 600 {shlex.quote(str(path))}"
                )
        return found[0], found[1], found[2]


def check_party_name(flag: str, name: str) -> None:
    """Raise BadInput unless this can be a client's name: it is shown, and part of a folder's name."""
    if not PARTY_NAME.fullmatch(name):
        raise BadInput(
            f"{flag} {name!r:.80}: a client's name has 1 to 64 letters, digits and . _ @ + - or blanks inside, and begins with no dot; "
            "give another"
        )


def keepalive(seconds: float) -> list[tuple[str, Any]]:
    """Return the options that notice a dead peer after `seconds` of silence and half as much again, the same at both ends."""
    check_seconds("--keepalive", seconds, 0.1, 86400.0)
    ms = int(1000 * seconds)
    return [
        ("grpc.keepalive_time_ms", ms),
        ("grpc.keepalive_timeout_ms", max(1000, ms // 2)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", ms // 2),  # the server's leave for such pings
    ]


def check_seconds(flag: str, seconds: float, least: float = 0.0, most: float = math.inf) -> None:
    """Raise BadInput unless a flag's seconds lie within its bounds."""
    if not least <= seconds <= most:
        raise BadInput(f"{flag} {seconds}: seconds from {least:g} to {most:g}")


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"  # any other name may lead anywhere


def check_address(address: str, insecure: bool, flag: str) -> None:
    """Raise BadInput unless this is HOST:PORT, and plain text stays on this machine."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadInput(f"{flag} {address!r}: write HOST:PORT, 0.0.0.0:7000 for instance")
    if insecure and not is_loopback(address):
        raise BadInput(
            f"{flag} {address!r} with --insecure: plain text is for this machine alone; take 127.0.0.1, or certificates"
        )


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


__all__ = [
    "METHOD",
    "PROTOCOL",
    "SERVER_NAME",
    "Tls",
    "check_address",
    "check_party_name",
    "check_seconds",
    "grpc",
    "is_loopback",
    "keepalive",
    "reason",
]
