"""Who a peer is, by the certificate that it proved to own."""

from typing import Any, NamedTuple


class Identity(NamedTuple):
    """The names that a peer goes by, and the serial number of its certificate; None in plain text."""

    names: frozenset[str]
    serial: int | None = None


def identify(context: Any) -> Identity:
    """Return the names and the serial number of a peer's certificate; raises ValueError if it cannot be read."""
    from cryptography import x509

    found = context.auth_context()
    keys = ("x509_common_name", "x509_subject_alternative_name")
    names = frozenset(value.decode(errors="replace") for key in keys for value in found.get(key, ()))
    (pem,) = found["x509_pem_cert"]
    return Identity(names, x509.load_pem_x509_certificate(pem).serial_number)
