"""Where the network is cut: bottom | top | tail, whose composition is the uncut model exactly."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import BadInput, unknown
from .models import later_stages
from .rows import join_rows
from .task import Batch
from .trace import divide_traced


class Smashed(NamedTuple):
    """What crosses the cut: `main` (N, *cut), the output of the block named by the cut, and any other tensors by name.

    `local` is what the bottom can say of them to the client alone, computed when it is asked for; it never crosses. In a bottom's
    dict it stands under names that begin with an underscore.
    """

    main: Tensor
    others: Mapping[str, Tensor] = {}
    local: Mapping[str, Callable[[], Tensor]] = {}

    @classmethod
    def of(cls, output: "Tensor | Mapping[str, Any] | Smashed") -> "Smashed":
        """Return what a bottom gave as Smashed; raises BadInput where something else than tensors would cross."""
        if isinstance(output, Smashed):
            return output
        values = dict(output) if isinstance(output, Mapping) else {"main": output}
        local: dict[str, Any] = {name[1:]: values.pop(name) for name in list(values) if name.startswith("_")}
        for name, value in values.items():
            if not isinstance(value, Tensor):
                raise BadInput(f"{name!r}, a {type(value).__name__}, would cross the cut; cut where only tensors cross")
        return cls(values.pop("main"), values, local)

    @classmethod
    def through(cls, bottom: nn.Module, batch: Batch) -> "Smashed":
        """Return what a bottom gives for a batch."""
        return cls.of(bottom(batch.x, **batch.inputs))

    def into(self, head: nn.Module) -> Tensor:
        """Return what a head at the cut gives; one whose `takes_others` is true is given the other tensors by name as well."""
        return unharmed(self.main, lambda z: head(z, **self.others) if getattr(head, "takes_others", False) else head(z))

    def followed_by(self, other: "Smashed") -> "Smashed":
        """Return the rows of both, those of the other one behind."""
        names = {name: join_rows([value, other.others[name]], name) for name, value in self.others.items()}
        local = {name: partial(_both, say, other.local[name]) for name, say in self.local.items()}
        return Smashed(join_rows([self.main, other.main], "smashed"), names, local)

    def detach(self) -> "Smashed":
        return Smashed(self.main.detach(), {name: value.detach() for name, value in self.others.items()})

    def tensors(self, role: str) -> dict[str, Tensor]:
        """Return the tensors by role: `role`, `role/<name>`, and context/<name> for integers, which have no gradient."""
        named = {role: self.main}
        for name, value in self.others.items():
            named[f"{role}/{name}" if value.is_floating_point() else f"context/{name}"] = value
        return named


def unharmed(z: Tensor, module: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what a module at the cut gives for z, which others need as it is; raises BadInput if it overwrites z."""
    before, why = z._version, "a module at the cut overwrites the activations that it is given; begin it without inplace=True"
    try:
        output = module(z)
    except RuntimeError as error:
        if "leaf Variable" not in str(error):
            raise
        raise BadInput(why) from error
    if z._version != before:
        raise BadInput(why)
    return output


def _both(first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Tensor:
    return torch.cat([first(), second()])


class Parts(NamedTuple):
    """The parts of a cut model, or any modules of the user's own that compose.

    `bottom` maps x to the smashed data (a tensor, or a dict with "main"), `top` takes them on; `tail`, where there is one,
    takes the top's output. `later_stages`: widths of the stages that lie wholly behind the cut, for auxiliary heads.
    """

    bottom: nn.Module
    top: nn.Module
    tail: nn.Module | None = None
    later_stages: tuple[int, ...] = ()

    def recompose(self, x: Tensor, **inputs: Tensor) -> Tensor:
        """Return what the uncut model would give for x and what else the bottom takes."""
        z = Smashed.of(self.bottom(x, **inputs))
        output: Tensor = self.top(z.main, **z.others)
        return output if self.tail is None else self.tail(output)


class Whole(nn.Module):
    """Parts put together again as one module, for baselines without a cut."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.bottom, self.top, self.tail = parts.bottom, parts.top, parts.tail

    def forward(self, x: Tensor, **inputs: Tensor) -> Tensor:
        return Parts(self.bottom, self.top, self.tail).recompose(x, **inputs)


def uncut(model: nn.Module) -> Parts:
    """Return a model as parts of which the bottom is all of it."""
    return Parts(model, nn.Identity())


def cut(model: nn.Module, at: str, tail: str | None = None) -> Parts:
    """Cut a model after the block `at` (and again after `tail`); the parts share the model's own modules.

    A model that has `divide(at, tail)` says itself what its bottom, top and tail (or None) are. A sequence of named blocks
    (nn.Sequential, nested) is cut in block order, every other model through torch.fx. `at` is a
    block's path ("stage1.block2"), an alias ("block12", counted through the stages; "shallow"), or a module that was traced;
    the tail may be "last", which is the last block of a sequence.
    Raises BadInput for an unknown name, nothing left on one side, or parameters used on both sides.
    """
    divide: Any = getattr(model, "divide", None)
    if divide is not None:
        return Parts(*divide(_resolve(model, at), tail))
    sequence = is_sequence(model)
    bottom, top = (divide_sequence if sequence else divide_traced)(model, _resolve(model, at))
    end: nn.Module | None = None
    if tail is not None:
        path = _last(top) if tail == "last" and sequence else _resolve(model, tail)
        top, end = divide_sequence(top, path, "tail") if sequence else divide_traced(top, path, single=True)
    refuse_shared({"bottom": bottom, "top": top} | ({"tail": end} if end is not None else {}))
    return Parts(bottom, top, end, later_stages(model, _resolve(model, at)))


def is_sequence(module: nn.Module) -> bool:
    """Return whether a module's forward runs its children in order, nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def blocks(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the paths after which a sequence of blocks can be cut, in order."""
    for name, child in model._modules.items():
        assert child is not None
        if is_sequence(child) and len(child._modules):
            yield from blocks(child, f"{prefix}{name}.")
        yield prefix + name


def aliases(model: nn.Module) -> dict[str, str]:
    """Return the other names of a model's cuts: block<i> counted through the stages from 1, and its own (shallow ...)."""
    counted = [path for path in blocks(model) if path.rpartition(".")[2].startswith("block")] if is_sequence(model) else []
    return {f"block{i}": path for i, path in enumerate(counted, 1)} | dict(getattr(model, "cuts", {}))


def _resolve(model: nn.Module, at: str) -> str:
    return aliases(model).get(at, at)


def _last(top: nn.Module) -> str:
    """Return the path after which only the last block of a sequence is left."""
    paths = list(blocks(top))
    inner = [path for path in paths if not any(other.startswith(path + ".") for other in paths)]
    if len(inner) < 2:
        raise BadInput("tail = 'last' leaves nothing for the server; cut earlier")
    return inner[-2]


def divide_sequence(model: nn.Module, at: str, what: str = "cut") -> tuple[nn.Sequential, nn.Sequential]:
    """Divide nested sequences after the block `at`; both sides keep the uncut model's names."""
    if at not in (legal := list(blocks(model))):
        raise unknown(what, at, legal + list(aliases(model)))
    before, after = _divide(model, at.split("."))
    if not len(after):
        raise BadInput(f"the {what} {at!r} leaves nothing behind it; choose an earlier block")
    return before, after


def _divide(model: nn.Module, path: list[str]) -> tuple[nn.Sequential, nn.Sequential]:
    before: OrderedDict[str, nn.Module] = OrderedDict()
    after: OrderedDict[str, nn.Module] = OrderedDict()
    side = before
    # _modules, because named_children() leaves out a module that stands in two places
    for name, child in model._modules.items():
        assert child is not None
        if name != path[0]:
            side[name] = child
            continue
        side = after
        if not path[1:]:
            before[name] = child
            continue
        before[name], rest = _divide(child, path[1:])
        if len(rest):
            after[name] = rest
    sides = nn.Sequential(before), nn.Sequential(after)
    for part in sides:
        part.training = model.training
    return sides


def refuse_shared(parts: Mapping[str, nn.Module]) -> None:
    """Raise BadInput if a tensor lies on two sides."""
    owner: dict[int, tuple[str, str]] = {}
    for part, module in parts.items():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            # by storage, because tensors can be tied by their data as well
            other, first = owner.setdefault(tensor.untyped_storage().data_ptr() or id(tensor), (part, name))
            if other != part:
                raise BadInput(
                    f"{first!r} of the {other} is {name!r} of the {part}: one tensor on both sides of the cut; untie it or cut elsewhere"
                )
