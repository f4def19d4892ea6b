"""Whether a loss can train: it gives one number, and it notices which sample a target belongs to."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .errors import BadInput
from .streams import drawing

Loss = Callable[[Tensor, Tensor], Tensor]
ROUNDING = 1e-13  # of terms in float64 that cancel
RESOLUTION = 1e-5  # of a loss in float32; the same terms in another order differ by less


def loss_copy(loss: Loss) -> Loss:
    """Return a copy of a loss that is an object, whose state a trial must not change; a function is its own copy."""
    return loss if inspect.isroutine(loss) else copy.deepcopy(loss)


def check_number(loss: object) -> None:
    """Raise BadInput unless a loss is one floating number."""
    if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
        kind = f" {loss.dtype}" if isinstance(loss, Tensor) else ""
        shape = tuple(getattr(loss, "shape", ()))
        raise BadInput(
            f"the loss gives {type(loss).__name__}{kind} of shape {shape}; it must be one number of a floating dtype"
        )


def check_loss(loss: Loss, output: Tensor, y: Tensor, axis: int | None) -> None:
    """Raise BadInput if the loss of the network's outputs stays the same when the targets of unlike samples are permuted.

    `output` and the targets `y` are those of one batch; `axis` is the batch axis of the output.
    """
    shape, repeated = list(output.shape), y
    if axis is not None and len(y) == shape[axis]:
        shape[axis], repeated = 2 * len(y), torch.cat([y, y])  # a loss may ask only which samples share a target
    drawn = [tells_apart(loss, each, repeated) for each in random_outputs(shape, output, repeated)]
    own = _wide(output)
    blind = False in drawn or (not _alike(own) and tells_apart(loss, own, y) is False and reads_targets(loss, own, y))
    if blind and True not in drawn:
        why = "they broadcast" if _broadcast(output, y) else "it does not read them sample by sample"
        raise BadInput(
            f"the loss stays the same when the targets of unlike samples are permuted (outputs {tuple(output.shape)}, targets "
            f"{tuple(y.shape)}: {why}); give outputs the shape that the loss asks for, or a loss of outputs and targets"
        )


def positions(loss: Loss, output: Tensor, y: Tensor) -> int | None:
    """Return the axis of the output (N, C, T) or (N, T, C) along which the targets (N, T) stand, or None if there is none.

    Where C is T, it is the axis along which the loss's gradient changes in one place alone when the targets of one place do.
    """
    if output.dim() != 3 or y.dim() != 2:
        return None
    found = [axis for axis in (2, 1) if output.shape[axis] == y.shape[1]]
    if len(found) < 2:
        return found[0] if found else None
    changed = y.clone()
    changed[:, 0] = y[:, 0].roll(1)
    drawn = next(random_outputs(output.shape, output, y), output)
    before, after = _gradient(loss, drawn, y), _gradient(loss, drawn, changed)
    if before is not None and after is not None:
        moved = (before - after).abs().sum(0)  # of rows (axis 1) and columns (axis 2)
        if float(moved[1:].sum()) <= RESOLUTION * float(moved.sum()) < float(moved[:, 1:].sum()):
            return 1
    return 2


def _gradient(loss: Loss, output: Tensor, y: Tensor) -> Tensor | None:
    """Return the gradient of a loss at an output, or None if there is none."""
    leaf = output.detach().clone().requires_grad_()
    try:
        with torch.enable_grad(), drawing(0, "loss check"):
            return torch.autograd.grad(loss(leaf, y), leaf)[0]
    except Exception:  # a stranger's loss may raise anything
        return None


def random_outputs(shape: Sequence[int], like: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield outputs that differ between samples, as those of an untrained network need not: of the targets' scale, and in (0, 1)."""
    dtype = _wide(like).dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        return
    with drawing(0, "loss check"):
        normal, unit = (draw(tuple(shape), dtype=dtype) for draw in (torch.randn, torch.rand))  # a shape may be ()
    scaled = not y.is_complex() and (y.is_floating_point() or y.numel() == normal.numel()) and y.numel() > 1
    mean, spread = (y.double().mean().item(), y.double().std().item()) if scaled else (0.0, 1.0)
    if not 0 < spread < float("inf"):
        mean, spread = 0.0, 1.0
    yield (mean + spread * normal).to(like.device)
    yield unit.to(like.device)


def tells_apart(loss: Loss, output: Tensor, y: Tensor) -> bool | None:
    """Return whether some permutation of the targets changes the loss; None if it cannot take these, or all targets are equal.

    The outputs must differ between samples: a correct loss of equal outputs, as an untrained network may give, does not change.
    """
    changes = [_changes(loss, output, y, permuted) for permuted in permutations(y)]
    return True if True in changes else False if False in changes else None


def reads_targets(loss: Loss, output: Tensor, y: Tensor) -> bool:
    """Return whether a loss changes where all samples have the target of one, and then that of another."""
    first = y[:1].expand_as(y)
    return any(_changes(loss, output, first, each[None].expand_as(y)) is True for each in y[1:])


def _changes(loss: Loss, output: Tensor, y: Tensor, other: Tensor) -> bool | None:
    if not output.is_complex() and not y.is_complex():
        wide = [y.double() if y.is_floating_point() else y, other.double() if other.is_floating_point() else other]
        before, after = (_value(loss, output.double(), targets) for targets in wide)
        if before is not None and after is not None:
            terms = float(output.abs().max()) * max(1.0, float(y.double().abs().max()) if y.is_floating_point() else 1.0)
            return abs(before - after) > RESOLUTION * max(abs(before), abs(after)) + ROUNDING * terms
    before, after = _value(loss, output, y), _value(loss, output, other)  # a loss with tensors of its own in float32
    if before is None or after is None:
        return None
    return abs(before - after) > RESOLUTION * max(abs(before), abs(after))


def permutations(y: Tensor) -> Iterator[Tensor]:
    """Yield targets (N, ...) in other orders that change them."""
    n = len(y)
    with drawing(0, "permuted targets"):
        orders = [torch.arange(n).roll(1), torch.arange(n).flip(0), torch.randperm(n), torch.randperm(n)]
    for order in orders:
        permuted = y[order.to(y.device)]
        if not torch.equal(permuted, y):
            yield permuted


def _value(loss: Loss, output: Tensor, y: Tensor) -> float | None:
    """Return the loss as a number, or None if it cannot take these outputs or is not finite."""
    with torch.no_grad(), drawing(0, "loss check"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = float(loss(output.clone(), y))
        except Exception:  # outputs outside of what the loss is defined for
            return None
    return value if value == value and abs(value) != float("inf") else None


def _alike(output: Tensor) -> bool:
    """Return whether outputs of all samples are nearly the same."""
    return len(output) < 2 or float((output - output[:1]).abs().max()) <= 1e-2 * float(output.abs().max())


def _wide(output: Tensor) -> Tensor:
    """Return outputs in float32 where a half precision would hide small changes of the loss."""
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output


def _broadcast(output: Tensor, y: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(output.shape, y.shape).numel() > max(output.numel(), y.numel())
    except RuntimeError:
        return False
