"""Whether parts, data and task fit together, found by trying them on a few samples."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .cut import Parts, Smashed, refuse_shared
from .data.items import read_batch
from .data.sources import Source
from .errors import BadInput, RunFailed
from .loss_check import check_loss, check_number, loss_copy, positions
from .recipes.recipe import Recipe
from .row_check import check_rows
from .rows import compare_layouts
from .streams import drawing, stream
from .task import Batch, Task

FEW, MANY = 2, 4  # sizes of the batches that are tried
POOL = 64  # samples among which unlike targets are looked for


class Trial(NamedTuple):
    """One pass of a batch through all parts: the batch, what crosses, the top's output and the network's."""

    batch: Batch
    z: Smashed
    features: Tensor
    output: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor whose rows may be joined or split, by name."""
        inputs = {f"inputs/{name}": value for name, value in self.batch.inputs.items()}
        crossing = self.z.tensors("smashed")
        return {
            "x": self.batch.x,
            **inputs,
            **crossing,
            "features": self.features,
            "output": self.output,
            "labels": self.batch.y,
        }


def fitted(task: Task, recipe: Recipe, parts: Parts, source: Source) -> Task:
    """Return the task with the shapes at the cut filled in, found by running samples through all parts in eval mode.

    Two batches of different sizes show where the batch axis of each tensor is.
    Raises BadInput if a part cannot take what it is given, if the loss cannot take the output or does not depend on whose target is
    whose, if a side has nothing to train, or if the recipe joins or splits rows of a tensor that has none.
    """
    refuse_shared({name: part for name, part in parts._asdict().items() if isinstance(part, nn.Module)})
    for name, trained in (("bottom", [parts.bottom, parts.tail]), ("top", [parts.top])):
        if recipe.cut != "none" and not any(p.requires_grad for part in trained if part is not None for p in part.parameters()):
            raise BadInput(f"the {name} has no parameters to train; cut {'later' if name == 'bottom' else 'earlier'}")
    with _told("the data give no batch", "give samples of one shape and one dtype"):
        batch = extreme_samples(source)
    bottom, top, tail = (
        copy.deepcopy(part).to(batch.x.device).eval() if part is not None else None
        for part in (parts.bottom, parts.top, parts.tail)
    )
    assert bottom is not None
    assert top is not None
    copies = Parts(bottom, top, tail)
    loss = loss_copy(task.loss)
    with drawing(0, "trial"), torch.no_grad():
        with autocast(recipe)():
            few = _try_network(copies, batch)
            given = f"outputs of shape {tuple(few.output.shape[1:])} for targets such as {batch.y[-1].tolist()!s:.40}"
            with _told(f"the loss cannot take {given}", "give the network one output per class, or another task"):
                value = loss(few.output, batch.y)
            check_number(value)
            many = _try_network(copies, tried_samples(source))
        fewer = few.tensors()
        layouts = {name: compare_layouts(fewer[name], tensor, (FEW, MANY)) for name, tensor in many.tensors().items()}
        check_rows(recipe, layouts, source)
        check_loss(loss, many.output, many.batch.y, layouts["output"].axis)
    position_axis = positions(loss, many.output, many.batch.y)
    return replace(
        task,
        num_classes=source.num_classes,
        input_shape=tuple(batch.x.shape[1:]),
        cut_shape=layouts["smashed"].sample_shape,
        later_stages=parts.later_stages,
        ragged=layouts["smashed"].ragged,
        per_position=position_axis is not None,
        position_axis=position_axis or 2,
        to_unit=source.to_unit,
        output_shape=layouts["output"].sample_shape,
        layouts=layouts,
    )


def _try_network(parts: Parts, batch: Batch) -> Trial:
    """Run a batch through all parts; raises BadInput naming the part that cannot take what it is given."""
    with _told(f"the bottom cannot take inputs of shape {tuple(batch.x.shape[1:])}", "choose another model or data set"):
        z = Smashed.through(parts.bottom, batch)
    with _told(f"the top cannot take the bottom's output of shape {tuple(z.main.shape[1:])}", "give parts that compose"):
        features = output = parts.top(z.main.clone(), **z.others)
    if parts.tail is not None:
        with _told(f"the tail cannot take the top's output of shape {tuple(features.shape[1:])}", "give parts that compose"):
            output = parts.tail(features.clone())
    return Trial(batch, z, features, output)


def crossing(parts: Parts, source: Source) -> dict[str, Tensor]:
    """Return what a client sends at the cut for two samples, by role; a gradient has the shape and values of what it belongs to."""
    z, top = _entering(parts, extreme_samples(source))
    with torch.no_grad():
        sent = {**z.tensors("smashed"), "feature_grad": top(z.main, **z.others)}
    return {role: tensor for role, tensor in sent.items() if tensor.is_floating_point() or role == "smashed"}


def _entering(parts: Parts, batch: Batch) -> tuple[Smashed, nn.Module]:
    """Return what a batch brings to the top, and a copy of the top that may be tried on it, in eval mode."""
    bottom, top = (copy.deepcopy(part).to(batch.x.device).eval() for part in (parts.bottom, parts.top))
    with torch.no_grad():
        return Smashed.through(bottom, batch), top


def two(source: Source) -> Tensor:
    """Return the positions (2,) of samples with the smallest and the largest target: what fits them fits the others."""
    if source.labels.dim() == 0:
        return torch.tensor([0, len(source) - 1])
    flat = source.labels.reshape(len(source), -1)
    if flat.is_complex():
        flat = flat.abs()
    return torch.stack([flat.amin(1).argmin(), flat.amax(1).argmax()]).cpu()


def extreme_samples(source: Source) -> Batch:
    """Return the samples of `two`; reading them leaves the global generators as they were."""
    return read_batch(source, two(source), None, 0, "extreme samples")


def tried_samples(source: Source, size: int = MANY) -> Batch:
    """Return a batch of up to MANY samples: those of `two`, one with a target unlike theirs if there is one, and one drawn at random.

    A small source gives samples twice. Reading them leaves the global generators as they were.
    """
    drawn = torch.randint(len(source), (POOL,), generator=stream(0, "tried samples")).tolist()
    chosen = two(source).tolist()
    known = source.labels
    unlike = _unlike(known, drawn, chosen) or _unlike(known, range(len(source)), chosen) if known.dim() else []
    index = torch.tensor([*chosen, *unlike, *drawn][:size])
    return read_batch(source, index, None, 0, "tried samples")


def _unlike(labels: Tensor, candidates: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Return the first of the candidates whose target is that of none of the chosen samples, if there is one."""
    rows = labels.reshape(len(labels), -1)
    others = torch.stack([(rows[list(candidates)] != rows[j]).any(1) for j in chosen]).all(0)
    return [candidates[i] for i in others.nonzero().flatten()[:1].tolist()]


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

    def state() -> tuple[bytes, ...]:
        drawn = torch.cuda.get_rng_state(batch.x.device) if on_cuda else torch.random.get_rng_state()
        _, key, position, *_ = np.random.get_state(legacy=True)
        return bytes(drawn.numpy()), repr(random.getstate()).encode(), np.asarray(key).tobytes() + str(position).encode()

    with torch.no_grad(), torch.random.fork_rng(devices=[batch.x.device] if on_cuda else []):
        before = state()
        z = Smashed.through(copies.pop("bottom"), batch)
        if before != state():
            return "bottom"
        for name, module in copies.items():
            if name == "top":
                module(z.main.clone(), **z.others)
            else:
                z.into(module)
            if before != state():
                return name
    return None


def autocast(recipe: Recipe) -> Callable[[], AbstractContextManager[Any]]:
    """Return the autocast that both sides compute under."""
    if recipe.precision != "bfloat16":
        return nullcontext
    return partial(torch.autocast, torch.device(recipe.device).type, dtype=torch.bfloat16)


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
