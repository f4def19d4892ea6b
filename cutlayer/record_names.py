"""Validation of the record names that a remote client sends: a name decides into which column of a round's record a number goes."""

import re
from collections.abc import Collection

from .errors import BadInput

MAX_UNDECLARED = 32
SERVER_PATTERN = re.compile(r"client_drift|alignment_error|state|piece\d+_loss|staleness_\d+")


class RecordNames:
    """The names that clients may record in a round.

    `declared` are the method's `record_names`; None: the method declares none, and at most MAX_UNDECLARED names that the server does
    not write are allowed. `own` are names that only the server writes. `client_loss`: the clients record the training loss, `loss`,
    because only they know it (a tail, or no cut).
    """

    def __init__(self, declared: Collection[str] | None, own: Collection[str], client_loss: bool) -> None:
        self.declared = None if declared is None else frozenset(declared)
        self.own, self.client_loss = frozenset(own), client_loss

    def check(self, names: Collection[str]) -> None:
        """Raise BadInput if a client's record has a name that it may not have."""
        for name in names:
            if name == "loss" and self.client_loss:
                continue
            if self.declared is None and len(names) > MAX_UNDECLARED:
                raise BadInput(
                    f"{len(names)} names in a record; a method without record_names may record {MAX_UNDECLARED}: declare them"
                )
            undeclared = self.declared is None and (name == "loss" or SERVER_PATTERN.fullmatch(name))
            if name in self.own or undeclared:
                raise BadInput(f"record/{name} is written by the server alone; give this figure of a client another name")
            if self.declared is not None and name not in self.declared:
                raise BadInput(
                    f"record/{name:.80} is not declared by the method; its record_names are "
                    f"{', '.join(sorted(self.declared)) or 'none'}"
                )
