"""Revoked clients: a list of names and serial numbers, or a certificate revocation list, read again while a server works."""

import datetime
import re
import time
from collections.abc import Callable
from pathlib import Path

from .errors import BadInput
from .transports.identity import Identity

try:
    from cryptography import x509
except ImportError as error:
    raise BadInput("--revoked needs the cryptography package; pip install 'cutlayer[grpc]'") from error

EVERY_S = 1.0
MAX_BYTES = 64 << 20
PEM = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
HEX = re.compile(r"(0x)?[0-9A-Fa-f]+")


class Revoked:
    """What a file revokes.

    The file is UTF-8 text with one name or serial number a line (hexadecimal or decimal, `#` begins a comment), or a CRL in PEM or DER
    that the authority `ca` (PEM) signed. Raises BadInput if it cannot be read when the server starts; later the last good list stays.
    """

    def __init__(self, path: Path, ca: Path | None, say: Callable[[str], None] = lambda line: None) -> None:
        self.path, self.ca, self.say = path, ca, say
        self.checked, self.told = time.monotonic(), ""
        self.stamp = self._stamp()
        self.entries = self._read()

    def reason(self, identity: Identity) -> str | None:
        """Return why a peer is not let in, or None."""
        names, serials = self.entries
        if listed := sorted(identity.names & names):
            return f"{listed[0]!r:.80} was revoked by the server's operator"
        if identity.serial in serials:
            return f"the certificate with serial number {identity.serial:x} was revoked; ask for a new one"
        return None

    def refresh(self) -> None:
        """Read the file again if it has changed; looks at most once a second."""
        if time.monotonic() - self.checked < EVERY_S:
            return
        self.checked = time.monotonic()
        try:
            stamp = self._stamp()
            if stamp == self.stamp:
                return
            self.entries, self.stamp, self.told = self._read(), stamp, ""
            self.say(f"--revoked {str(self.path)!r} was read again: {len(self.entries[0] | self.entries[1])} entries")
        except BadInput as error:
            if str(error) != self.told:
                self.told = str(error)
                self.say(f"{error}; the list read before stays in force")

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError as error:
            raise BadInput(f"--revoked {str(self.path)!r}: {error.strerror}") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> tuple[frozenset[str], frozenset[int]]:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise BadInput(f"--revoked {str(self.path)!r}: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise BadInput(f"--revoked {str(self.path)!r} has more than {MAX_BYTES >> 20} MiB")
        text = _text(data)
        if text is None:
            return frozenset(), self._listed(lambda: [x509.load_der_x509_crl(data)])
        if blocks := PEM.findall(data):
            return frozenset(), self._listed(lambda: [x509.load_pem_x509_crl(block) for block in blocks])
        if "-----" in text:
            raise BadInput(f"--revoked {str(self.path)!r} is damaged: it is neither names and serial numbers nor a whole CRL")
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        names = frozenset(line for line in lines if line)
        return names, frozenset(number for name in names for number in _serials(name))

    def _listed(self, load: Callable[[], list[x509.CertificateRevocationList]]) -> frozenset[int]:
        """Return the serial numbers of revocation lists, each of which the authority must have signed."""
        if self.ca is None:
            raise BadInput(f"--revoked {str(self.path)!r} is no text, and a CRL needs certificates; with --insecure list names")
        try:
            lists, authorities = load(), x509.load_pem_x509_certificates(self.ca.read_bytes())
            genuine = all(any(_is_signed(crl, authority) for authority in authorities) for crl in lists)
            serials = frozenset(entry.serial_number for crl in lists for entry in crl if not _is_removed(entry))
        except (ValueError, TypeError, OSError) as error:
            raise BadInput(f"--revoked {str(self.path)!r} is neither UTF-8 text nor a whole CRL ({error})") from error
        if not genuine:
            raise BadInput(f"--revoked {str(self.path)!r} has a CRL that the authority of --ca {str(self.ca)!r} did not sign")
        now = datetime.datetime.now(datetime.UTC)
        for due in (crl.next_update_utc for crl in lists):
            if due is not None and due < now:
                self.say(f"--revoked {str(self.path)!r}: the CRL was to be renewed by {due:%Y-%m-%d}; it stays in force")
        return serials


def _text(data: bytes) -> str | None:
    """Return the text of a file, or None if it has bytes that no list of names has."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if CONTROL.search(text) else text


def _is_signed(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    return crl.issuer == authority.subject and crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]


def _is_removed(entry: x509.RevokedCertificate) -> bool:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return False
    return reason is x509.ReasonFlags.remove_from_crl


def _serials(line: str) -> set[int]:
    """Return the serial numbers that a line may mean: digits alone are decimal or hexadecimal, colons are as openssl prints them."""
    digits = line.replace(":", "")
    if not HEX.fullmatch(digits) or len(digits) > 64:
        return set()
    return {int(digits, 16)} | ({int(digits)} if digits.isdecimal() else set())
