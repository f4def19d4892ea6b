"""Certificates: a whole demonstration set for one machine, and what is wrong with the one that a party brings."""

import datetime
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .errors import BadInput
from .private import make_folder
from .transports.grpc_common import SERVER_NAME, Tls

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise BadInput("certificates need the cryptography package; pip install 'cutlayer[grpc]'") from error

DAYS = 30
MOST_DAYS = 3650
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")  # of a file as well, and a common name has at most 64 characters


class Authority:
    """A new authority whose key is nowhere but here; it writes its certificate, and issues others, to a folder."""

    def __init__(self, folder: Path, days: float = DAYS) -> None:
        make_folder(folder)
        self.folder, self.name, self.key = folder, _name("cutlayer demo authority"), ec.generate_private_key(ec.SECP256R1())
        builder = _certificate(self.name, self.key.public_key(), self.name, days)
        self.ca = self._sign(builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True), "ca")

    def issue(self, name: str, days: float = DAYS) -> Tls:
        """Write a certificate made out to a party, and its key, and return the files."""
        key, is_server = ec.generate_private_key(ec.SECP256R1()), name == SERVER_NAME
        called = [x509.DNSName(name)] + ([x509.DNSName("localhost")] if is_server else [])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if is_server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _certificate(_name(name), key.public_key(), self.name, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(called), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Tls(self.ca, self._sign(builder, name), _write(self.folder / f"{name}.key", pem))

    def _sign(self, builder: x509.CertificateBuilder, name: str) -> Path:
        signed = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return _write(self.folder / f"{name}.pem", signed)


def demo(folder: Path, names: Sequence[str], days: float = DAYS) -> list[Path]:
    """Write an authority's certificate, and one with its key for the server and each client, and return the files.

    The authority's own key is thrown away, so no further party can be let in by this set. Raises BadInput, before anything is written,
    for a name that cannot be one, days that are none, and if there is a set already.
    """
    taken = ["ca", SERVER_NAME]
    for name in names:
        if not NAME.fullmatch(name):
            raise BadInput(f"client {name!r}: a name has 1 to 64 of A-Z a-z 0-9 . _ - and begins with no dot; give another")
        if name.lower() in taken:  # some file systems do not tell A from a
            raise BadInput(f"client {name!r}: the authority, the server or another client is called so already; give another")
        taken.append(name.lower())
    if not 0 < days <= MOST_DAYS:
        raise BadInput(f"days = {days}: certificates are for more than 0 and at most {MOST_DAYS} days")
    if (folder / "ca.pem").exists():
        raise BadInput(f"{folder} holds a set of certificates already; choose another folder, or delete it")
    authority = Authority(folder, days)
    return [authority.ca] + [path for name in (SERVER_NAME, *names) for path in authority.issue(name, days)[1:]]


def _certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, days: float) -> x509.CertificateBuilder:
    """Return a certificate that was valid for a year already, because clocks differ, and ends in so many days."""
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=365))
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _write(path: Path, data: bytes) -> Path:
    """Write a file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    return path


def check(tls: Tls, name: str) -> None:
    """Raise BadInput that says what is wrong with a party's own files: not readable, of another name, expired, of another authority."""
    ca, cert, key = tls.read()
    try:
        authority, mine = x509.load_pem_x509_certificate(ca), x509.load_pem_x509_certificate(cert)
        own = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise BadInput(f"--ca, --cert and --key have to be PEM, the key without a password ({error})") from error
    found = {str(value.value) for value in mine.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    with suppress(x509.ExtensionNotFound):
        called = mine.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found |= set(called.get_values_for_type(x509.DNSName))
    if name not in found:
        raise BadInput(f"--cert {str(tls.cert)!r} is made out to {', '.join(sorted(found)) or 'nobody'}, not to {name!r}")
    now = datetime.datetime.now(datetime.UTC)
    for what, each in (("--cert", mine), ("--ca", authority)):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            path = tls.cert if what == "--cert" else tls.ca
            first, last = each.not_valid_before_utc, each.not_valid_after_utc
            raise BadInput(f"{what} {str(path)!r} is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}; get a new one")
    if own.public_key() != mine.public_key():
        raise BadInput(f"--key {str(tls.key)!r} does not belong to --cert {str(tls.cert)!r}")
    try:
        mine.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise BadInput(f"--cert {str(tls.cert)!r} was not issued by the authority of --ca {str(tls.ca)!r}") from error
