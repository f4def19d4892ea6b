"""The methods: where the client's gradient comes from. A new one is one file and one row here."""

from typing import Any, NamedTuple

from . import auxiliary_loss, backprop, fsl_sage, loss_threshold, synthetic_gradient, uncut, zeroth_order


class Entry(NamedTuple):
    """A row of the table: the class, and one line about it."""

    build: Any
    line: str


METHODS: dict[str, Entry] = {
    "backprop": Entry(backprop.Backprop, "conventional split learning: the server returns the gradient at the cut"),
    "auxiliary_loss": Entry(
        auxiliary_loss.AuxiliaryLoss, "decoupled: a local loss at the cut, nothing comes back (lambda mixes)"
    ),
    "loss_threshold": Entry(
        loss_threshold.LossThreshold, "full exchange, activations alone, or rest, as the server's loss moves (A, B, C)"
    ),
    "fsl_sage": Entry(
        fsl_sage.FslSage, "the head's own gradient at the cut; the server aligns the head with the true one now and then"
    ),
    "synthetic_gradient": Entry(
        synthetic_gradient.SyntheticGradient,
        "a regressor at the client guesses the gradient; true ones come back now and then to teach it",
    ),
    "zeroth_order": Entry(
        zeroth_order.ZerothOrder,
        "no backward pass at the client: losses under random shifts of its weights, the server's or its own",
    ),
    "uncut": Entry(uncut.Uncut, "no cut: the whole network at every data owner, for the baselines (with cut = none)"),
}
