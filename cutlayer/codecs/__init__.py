"""Fewer bytes at the cut: small encode/decode objects outside autograd, so gradients pass straight through.

A codec is named in a recipe as name, or name@argument:argument, and several one after the other as top_k@0.1+uniform4.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch

from ..errors import BadInput
from ..named import find, made
from ..wire import Codec
from .base import Draws
from .chain import Chain, Feedback
from .floats import BFloat16, Float8, Float16, Identity, Minifloat
from .low_rank import LowRank
from .merge import BatchMerge
from .noise import GaussianNoise
from .sparse import TopK
from .uniform import Uniform

__all__ = ["CODECS", "Entry", "build", "reducer"]


class Entry(NamedTuple):
    """A row of the table: how a codec is made for a role, its random numbers and its arguments, and one line about it."""

    build: Callable[..., Codec]
    line: str


def _float8(role: str, draws: Draws) -> Codec:
    # a gradient needs range, an activation precision
    return Float8(torch.float8_e5m2 if role.endswith("grad") else torch.float8_e4m3fn)


def _uniform(bits: int) -> Callable[..., Codec]:
    def make(role: str, draws: Draws, rounding: Literal["stochastic", "nearest"] = "stochastic") -> Codec:
        return Uniform(draws, bits, rounding)

    return make


def _minifloat(role: str, draws: Draws, exponent: int = 0, mantissa: int = 0) -> Codec:
    if (exponent, mantissa) != (0, 0) and not (1 <= exponent <= 8 and 0 <= mantissa <= 23):
        raise BadInput(f"codec minifloat@{exponent}:{mantissa}: 1 to 8 exponent bits and 0 to 23 of mantissa")
    return Minifloat(exponent, mantissa)


def _top_k(role: str, draws: Draws, ratio: float = 0.1) -> Codec:
    return TopK(draws, _share("top_k", ratio))


def _random_top_k(role: str, draws: Draws, ratio: float = 0.1, alpha: float = 0.1) -> Codec:
    return TopK(draws, _share("random_top_k", ratio), _share("random_top_k", alpha))


def _low_rank(role: str, draws: Draws, rank: int = 4) -> Codec:
    if rank < 1:
        raise BadInput(f"codec low_rank@{rank}: the rank is at least 1")
    return LowRank(draws, rank)


def _gaussian_noise(role: str, draws: Draws, sigma: float = 0.01, clip: float = 10.0) -> Codec:
    if not (0 <= sigma < math.inf and 0 < clip < math.inf):
        raise BadInput(f"codec gaussian_noise@{sigma}:{clip}: sigma is 0 or more and clip above 0, both finite")
    return GaussianNoise(draws, sigma, clip)


def _batch_merge(role: str, draws: Draws, ratio: float = 0.5, tokens: float = 1.0) -> Any:
    if role != "smashed":
        raise BadInput(f"codec {role} = batch_merge: samples are merged where activations go up; give it to smashed")
    return BatchMerge(draws, _share("batch_merge", ratio), _share("batch_merge", tokens))


def _feedback(role: str, draws: Draws) -> Codec:
    if role != "weights":
        raise BadInput(f"codec {role} = feedback: the error belongs to other samples each time; give it to weights")
    return Feedback(Identity())


def _share(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise BadInput(f"codec {name}@{value}: a share lies above 0 and is at most 1")
    return value


CODECS: dict[str, Entry] = {
    "identity": Entry(lambda role, draws: Identity(), "what was computed is sent, in its own dtype"),
    "float16": Entry(lambda role, draws: Float16(), "2 bytes per value, saturating"),
    "bfloat16": Entry(lambda role, draws: BFloat16(), "2 bytes per value, the range of float32"),
    "float8": Entry(_float8, "1 byte per value and a scale: e4m3 for activations, e5m2 for gradients"),
    "float8_e4m3": Entry(lambda role, draws: Float8(torch.float8_e4m3fn), "1 byte per value: 4 exponent bits, 3 of mantissa"),
    "float8_e5m2": Entry(lambda role, draws: Float8(torch.float8_e5m2), "1 byte per value: 5 exponent bits, 2 of mantissa"),
    "minifloat": Entry(_minifloat, "small floats; minifloat@E:M, or the best split of 8 bits for the tensor at hand"),
    "uniform8": Entry(_uniform(8), "256 levels between smallest and largest; rounded by chance, or uniform8@nearest"),
    "uniform4": Entry(_uniform(4), "16 levels, packed two to a byte"),
    "uniform2": Entry(_uniform(2), "4 levels, packed four to a byte"),
    "top_k": Entry(_top_k, "the largest tenth of each sample and where it is; top_k@ratio; gradients at the same places"),
    "random_top_k": Entry(_random_top_k, "top_k with some places drawn among the others; random_top_k@ratio:alpha"),
    "low_rank": Entry(_low_rank, "two thin factors, low_rank@rank"),
    "gaussian_noise": Entry(_gaussian_noise, "samples clipped and noised, gaussian_noise@sigma:clip; first in a chain"),
    "batch_merge": Entry(_batch_merge, "ADC: similar samples as their mean, batch_merge@ratio or @ratio:tokens; first in a chain"),
    "feedback": Entry(_feedback, "in front of a lossy codec of weights: its error is added to the next message"),
}  # fmt: skip


def build(names: Mapping[str, str], seed: int = 0, client: int = 0, end: str = "") -> dict[str, Codec]:
    """Return fresh codecs for one end of one client, by role family, without reducers of rows.

    Raises BadInput on an unknown codec, an argument that it does not take, or an order that means nothing.
    """
    built = {role: codec for role, name in names.items() if (codec := _chain(role, name, seed, client, end)) is not None}
    # a gradient comes back at the places of its activations
    gradient, activations = _sparse(built.get("cut_grad")), _sparse(built.get("smashed"))
    if gradient is not None and activations is not None:
        if "top_k@" in names["cut_grad"] and gradient.ratio != activations.ratio:
            raise BadInput(
                f"codec cut_grad = {names['cut_grad']!r}: a gradient has the places of its activations, {names['smashed']!r}; write top_k"
            )
        gradient.peer = activations
    return built


def reducer(names: Mapping[str, str], seed: int = 0, client: int = 0) -> BatchMerge | None:
    """Return what merges the rows of a batch before they are encoded, if the smashed data have one."""
    first, _, _ = names.get("smashed", "").partition("+")
    if first.partition("@")[0] != "batch_merge":
        return None
    found = _one("smashed", first, seed, client, "")
    assert isinstance(found, BatchMerge)
    return found


def _sparse(codec: Any) -> TopK | None:
    """Return the codec that leaves values out, if what it is given are the tensor's own, each at its place."""
    for each in getattr(codec, "codecs", [codec]):
        if isinstance(each, TopK):
            return each
        if getattr(each, "num_parts", 0) != 1:
            return None
    return None


def _chain(role: str, name: str, seed: int, client: int, end: str) -> Codec | None:
    codecs = [_one(role, part, seed, client, end) for part in name.split("+")]
    feeds = isinstance(codecs[0], Feedback)
    if feeds or isinstance(codecs[0], BatchMerge):
        codecs = codecs[1:]
    private = [i for i, codec in enumerate(codecs) if isinstance(codec, GaussianNoise)]
    if any(isinstance(codec, BatchMerge | Feedback) for codec in codecs) or any(private) or (feeds and private):
        raise BadInput(
            f"codec {role} = {name!r}: batch_merge or feedback comes first, and gaussian_noise before whatever codes its result"
        )
    if any(not hasattr(codec, "floats") for codec in codecs[:-1]):
        raise BadInput(f"codec {role} = {name!r}: only the last of a chain may be a codec of your own")
    if any(not codec.floats for codec in codecs[:-1]):
        raise BadInput(
            f"codec {role} = {name!r}: float8, minifloat and uniform leave bytes, not values; put them last in a chain"
        )
    if feeds and not codecs:
        raise BadInput(f"codec {role} = {name!r}: feedback stands in front of a codec, e.g. feedback+float8")
    if not codecs:
        return None
    whole: Codec = codecs[0] if len(codecs) == 1 else Chain(codecs)
    return Feedback(whole) if feeds else whole


def _one(role: str, text: str, seed: int, client: int, end: str) -> Any:
    name, _, rest = text.partition("@")
    row = find("codec", name, CODECS)
    if not isinstance(row, Entry):
        return made("codec", name, row, Codec, role)  # type: ignore[type-abstract]
    given = rest.split(":") if rest else []
    takes = list(inspect.signature(row.build).parameters.values())[2:]
    if len(given) > len(takes):
        wanted = ":".join(p.name for p in takes) or "nothing"
        raise BadInput(f"codec {text!r}: {name} takes {wanted} behind the @")
    arguments = [_value(text, parameter, value) for parameter, value in zip(takes, given, strict=False)]
    return row.build(role, Draws(seed, f"codec {end} {role} {text}", client), *arguments)


def _value(text: str, parameter: inspect.Parameter, value: str) -> Any:
    kind = parameter.annotation
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise BadInput(f"codec {text!r}: {parameter.name} is {' or '.join(get_args(kind))}")
        return value
    try:
        return kind(value)
    except ValueError:
        raise BadInput(f"codec {text!r}: {parameter.name} = {value!r} is no {kind.__name__}") from None
