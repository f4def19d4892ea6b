"""Who may take part in a run: the operator's revocations, and what becomes of clients that were turned away."""

import time
from collections.abc import Sequence
from pathlib import Path

from .errors import BadInput
from .offences import Offences, times
from .readmit import answer_requests
from .revoked import Revoked
from .transports.grpc_server import Busy
from .transports.identity import Identity

EVERY_S = 1.0


class Access:
    """Decides who is let in. Network threads ask `barred` and `refusal`; the computing thread calls the rest."""

    def __init__(self, names: Sequence[str], out: Path, revoked: Revoked | None, max_offences: int) -> None:
        if max_offences < 1:
            raise BadInput(f"--max-offences {max_offences}: at least 1")
        self.names, self.out, self.revoked = names, out, revoked
        self.offences = Offences(max_offences)
        self.checked = time.monotonic()

    def barred(self, identity: Identity) -> str | None:
        """Return why a certificate or a name is not let in at all, or None."""
        return self.revoked.reason(identity) if self.revoked is not None else None

    def refusal(self, name: str) -> str | None:
        """Return why a client is excluded, or None; raises Busy while it has to wait."""
        count = times(self.offences.count(name))
        if self.offences.is_excluded(name):
            return f"{name} was turned away {count} and is excluded; the operator lets it in with: cutlayer readmit {self.out} {name}"
        if pause := self.offences.pause(name):
            raise Busy(f"{name} was turned away {count}; it may come back in {pause:.1f} s")
        return None

    def refresh(self) -> bool:
        """Read changed revocations and answer the operator's requests, at most once a second; return whether it was time for that."""
        if time.monotonic() - self.checked < EVERY_S:
            return False
        self.checked = time.monotonic()
        if self.revoked is not None:
            self.revoked.refresh()
        answer_requests(self.out, self.readmit)
        return True

    def readmit(self, name: str) -> str:
        """Forget a client's offences and return what it says to the operator; raises BadInput for a name of no client."""
        if name not in self.names:
            raise BadInput(f"{name!r:.80} is not a client of this run; those are {', '.join(self.names)}")
        count = self.offences.forgive(name)
        return f"{name} may come back; it was turned away {times(count)}" if count else f"{name} was not turned away"
