"""Whether parts, data and task fit together, found by trying them on two samples."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from .cut import Parts, Smashed, refuse_shared
from .data.items import read_batch
from .data.sources import Source
from .errors import BadInput, RunFailed
from .recipes.recipe import Recipe
from .task import Batch, Task


def fitted(task: Task, recipe: Recipe, parts: Parts, source: Source) -> Task:
    """Return the task with the shapes at the cut filled in, found by running two samples through all parts in eval mode.

    Raises BadInput if a part cannot take what it is given, if the loss cannot take the output, or if a side has nothing to train.
    """
    refuse_shared({name: part for name, part in parts._asdict().items() if isinstance(part, nn.Module)})
    for name, trained in (("bottom", [parts.bottom, parts.tail]), ("top", [parts.top])):
        if recipe.cut != "none" and not any(p.requires_grad for part in trained if part is not None for p in part.parameters()):
            raise BadInput(f"the {name} has no parameters to train; cut {'later' if name == 'bottom' else 'earlier'}")
    with _told("the data give no batch", "give samples of one shape and one dtype"):
        batch = extreme_samples(source)
    bottom, top, tail, _ = (
        copy.deepcopy(part).to(batch.x.device).eval() if isinstance(part, nn.Module) else None for part in parts
    )
    assert bottom is not None
    assert top is not None
    shape = tuple(batch.x.shape[1:])
    with torch.no_grad():
        with _told(f"the bottom cannot take inputs of shape {shape}", "choose another model or data set"):
            z = Smashed.through(bottom, batch)
        with _told(f"the top cannot take the bottom's output of shape {tuple(z.main.shape[1:])}", "give parts that compose"):
            output = top(z.main, **z.others)
        if tail is not None:
            with _told(f"the tail cannot take the top's output of shape {tuple(output.shape[1:])}", "give parts that compose"):
                output = tail(output)
        given = f"outputs of shape {tuple(output.shape[1:])} for targets such as {batch.y[-1].tolist()!s:.40}"
        with _told(f"the loss cannot take {given}", "give the network one output per class, or another task"):
            loss = task.loss(output, batch.y)
    if not isinstance(loss, Tensor) or loss.dim():
        raise BadInput(
            f"the loss gives {type(loss).__name__} of shape {tuple(getattr(loss, 'shape', ()))}; it must be one number"
        )
    return replace(
        task,
        num_classes=source.num_classes,
        input_shape=shape,
        cut_shape=tuple(z.main.shape[1:]),
        later_stages=parts.later_stages,
        ragged=len(z.main) != len(batch.y),
        per_position=output.dim() == 3 and batch.y.dim() == 2,
        to_unit=source.to_unit,
    )


def crossing(parts: Parts, source: Source) -> dict[str, torch.Size]:
    """Return the shape of a sample of what a client sends at the cut, by role."""
    z, top = _entering(parts, extreme_samples(source))
    with torch.no_grad():
        sent = {**z.tensors("smashed"), "feature_grad": top(z.main, **z.others)}
    return {role: tensor.shape[1:] for role, tensor in sent.items() if tensor.is_floating_point() or role == "smashed"}


def _entering(parts: Parts, batch: Batch) -> tuple[Smashed, nn.Module]:
    """Return what a batch brings to the top, and a copy of the top that may be tried on it, in eval mode."""
    bottom, top = (copy.deepcopy(part).to(batch.x.device).eval() for part in (parts.bottom, parts.top))
    with torch.no_grad():
        return Smashed.through(bottom, batch), top


def two(source: Source) -> Tensor:
    """Return the positions (2,) of samples with the smallest and the largest target: what fits them fits the others."""
    if source.labels.dim() == 0 or source.labels.is_floating_point():
        return torch.tensor([0, len(source) - 1])
    flat = source.labels.reshape(len(source), -1)
    return torch.stack([flat.amin(1).argmin(), flat.amax(1).argmax()]).cpu()


def extreme_samples(source: Source) -> Batch:
    """Return the samples of `two`; reading them leaves the global generators as they were."""
    return read_batch(source, two(source), None, 0, "extreme samples")


def overwrites(parts: Parts, batch: Batch) -> bool:
    """Return whether the top begins with an operation in place, which a received leaf does not allow; it is then given a copy."""
    z, top = _entering(parts, batch)
    leaves = {
        name: value.clone().requires_grad_(value.is_floating_point()) for name, value in [("main", z.main), *z.others.items()]
    }
    try:
        top(leaves.pop("main"), **leaves)
    except RuntimeError as error:
        if "leaf Variable" not in str(error):
            raise
        return True
    return False


def drawing_part(modules: Mapping[str, nn.Module], batch: Batch) -> str | None:
    """Return the name of a part that draws random numbers in training, or None."""
    copies = {name: copy.deepcopy(module).train() for name, module in modules.items()}
    on_cuda = batch.x.is_cuda

    def state() -> Tensor:
        return torch.cuda.get_rng_state(batch.x.device) if on_cuda else torch.random.get_rng_state()

    with torch.no_grad(), torch.random.fork_rng(devices=[batch.x.device] if on_cuda else []):
        before = state()
        z = Smashed.through(copies.pop("bottom"), batch)
        if not torch.equal(before, state()):
            return "bottom"
        for name, module in copies.items():
            if name == "top":
                module(z.main.clone(), **z.others)
            else:
                z.into(module)
            if not torch.equal(before, state()):
                return name
    return None


@contextmanager
def single_samples() -> Iterator[None]:
    """Say in one line what is wrong where a batch of one sample reaches BatchNorm in training; raises RunFailed."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RunFailed(
            "a batch of one sample reached BatchNorm; raise batch_size, or give each client more samples"
        ) from error


@contextmanager
def _told(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a part that does not fit raises into one line."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # a stranger's module, data set or loss may raise anything
        reason = str(error).partition("\n")[0]
        raise BadInput(f"{what} ({reason}); {remedy}") from error
