"""The literature's names for whole schemes; a scheme is data and adds no code path."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Scheme(NamedTuple):
    """A row of the table: the fields a name stands for, and one line: who sends what, and the paper."""

    fields: Mapping[str, Any]
    line: str


SCHEMES: dict[str, Scheme] = {
    "vanilla": Scheme(
        {"method": "backprop", "schedule": "relay", "hand_over": "reset"},
        "activations and labels up, gradients down; clients take turns (Gupta & Raskar, arXiv 1810.06060)",
    ),
    "dsl": Scheme(
        {"method": "auxiliary_loss", "schedule": "relay", "hand_over": "shared"},
        "activations and labels up, nothing down; one shared client model (arXiv 2601.19261 and its code)",
    ),
    "dsl_seq": Scheme(
        {"method": "auxiliary_loss", "schedule": "relay", "hand_over": "reset"},
        "as dsl, but the client model and its auxiliary head travel from client to client",
    ),
}
