"""A site's description of its data: small, of bounded size, and comparable with another site's."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Annotated, Any

import pydantic
import torch
from pydantic import Field, StringConstraints
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor

from ..errors import BadInput
from ..printable import printable
from ..streams import seeded_globals, stream
from .sources import Data, Source

FIRST = 256  # names, means or columns that a description lists; a hash covers all names
LONGEST = 60  # characters of a listed name
SAMPLES = 32  # samples whose values are observed
IGNORED = -100  # the target that PyTorch's cross-entropy skips, where a sample has several
INT64 = 2**63

Name = Annotated[str, StringConstraints(max_length=LONGEST)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0, lt=INT64)]
Label = Annotated[int, Field(ge=-INT64, lt=INT64)]
Shape = Annotated[tuple[Count, ...], Field(max_length=64)]
Numbers = Annotated[tuple[float, ...], Field(max_length=FIRST)]
strict = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


@pydantic_dataclass(frozen=True, config=strict)
class Names:
    """A list of names: its length, its first names, and a hash of all of them in their order."""

    count: Count
    first: Annotated[tuple[Name, ...], Field(max_length=FIRST)]
    digest: Digest

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """Return the bounded form; equal letters in another Unicode form (a file system's choice) are equal."""
        plain = [_plain(name) for name in names]
        return cls(len(plain), tuple(printable(name, LONGEST) for name in plain[:FIRST]), _digest(plain))


@pydantic_dataclass(frozen=True, config=strict)
class DataDescription:
    """Description of a site's training data, for the greeting. None: unknown, or without meaning for these data.

    Shapes are per sample; `label_range` holds the smallest and largest integer target; `normalisation`: the constants (mean, std) per
    channel that inputs are normalised with; `value_range`: the medians over some samples of a sample's smallest and largest value, after
    normalisation; `statistics`: mean and deviation by column, where they are estimates from the site's own rows.
    """

    num_classes: Count | None
    input_shape: Shape
    input_dtype: Name
    target_shape: Shape
    target_dtype: Name
    label_range: tuple[Label, Label] | None
    class_names: Names | None
    column_names: Names | None
    normalisation: tuple[Numbers, Numbers] | None
    value_range: tuple[float, float] | None
    statistics: Annotated[dict[Name, tuple[float, float]], Field(max_length=FIRST)] | None
    vocabulary_size: Count | None
    vocabulary: Digest | None
    tokenizer: Digest | None

    @property
    def has_classes(self) -> bool:
        """Whether all targets are class numbers."""
        return self.label_range is not None and self.label_range[0] >= 0 and self.label_range[1] < (self.num_classes or 0)

    @property
    def has_tokens(self) -> bool:
        """Whether inputs are numbers of tokens."""
        return self.input_dtype in ("int16", "int32", "int64")


FORM = pydantic.TypeAdapter(DataDescription)


def describe(data: Data) -> DataDescription:
    """Return the description of a data set's training split; reads at most SAMPLES samples of it.

    Raises BadInput if the source gives no batch, or if its class names do not fit its number of classes.
    """
    try:
        return _described(data)
    except pydantic.ValidationError as error:
        raise BadInput(f"the data set states something that cannot be compared ({_first(error)})") from None
    except (TypeError, ValueError, AttributeError) as error:
        why = str(error).partition("\n")[0]
        raise BadInput(f"the metadata of the data set cannot be used ({why:.120}); see cl.data.Metadata") from error


def _described(data: Data) -> DataDescription:
    source, metadata = data.train, data.metadata
    x = _samples(source)
    normalisation = getattr(source, "normalisation", None)
    vocabulary = getattr(source, "vocabulary", 0) or len(metadata.vocabulary or ()) or None
    return DataDescription(
        num_classes=int(data.num_classes) if isinstance(data.num_classes, Integral) else None,
        input_shape=tuple(source.input_shape),
        input_dtype=_dtype(x),
        target_shape=tuple(source.labels.shape[1:]),
        target_dtype=_dtype(source.labels),
        label_range=_label_range(source.labels),
        class_names=None if metadata.class_names is None else Names.of(metadata.class_names),
        column_names=None if metadata.column_names is None else Names.of(metadata.column_names),
        normalisation=None if normalisation is None else (_numbers(normalisation[0]), _numbers(normalisation[1])),
        value_range=_typical_range(x),
        statistics=None
        if metadata.statistics is None
        else {printable(_plain(name), LONGEST): pair for name, pair in list(metadata.statistics.items())[:FIRST]},
        vocabulary_size=vocabulary,
        vocabulary=None if metadata.vocabulary is None else _digest(metadata.vocabulary),
        tokenizer=None if metadata.tokenizer is None else _digest([metadata.tokenizer]),
    )


def to_json(description: DataDescription) -> dict[str, Any]:
    """Return a description as JSON takes it."""
    return FORM.dump_python(description, mode="json")


def parse(told: Any) -> DataDescription:
    """Return the description that another party sent; raises BadInput if it has another form or size."""
    if told is None:
        raise BadInput("this hello has no description of its data; install the same version of cutlayer at both ends")
    try:
        return FORM.validate_python(told)
    except pydantic.ValidationError as error:
        raise BadInput(f"the description of the data cannot be used ({_first(error)})") from None


def _first(error: pydantic.ValidationError) -> str:
    """Return where the first fault is, and what it is."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where!r:.60}: {first['msg']:.80}"


def _samples(source: Source) -> Tensor:
    """Return the inputs of some samples, always the same ones, without augmentation."""
    index = torch.randint(len(source), (min(len(source), SAMPLES),), generator=stream(0, "description")).unique()
    try:
        with seeded_globals(0, "description"):  # a data set's own transforms may draw
            return source.batch(index, None).x
    except BadInput:
        raise
    except Exception as error:  # a user's data set may raise anything
        reason = str(error).partition("\n")[0]
        raise BadInput(f"the data give no batch ({reason}); give samples of one shape and one dtype") from error


def _typical_range(x: Tensor) -> tuple[float, float] | None:
    """Return the medians over rows of a row's smallest and largest value; medians, because single values may be far out."""
    if x.layout != torch.strided or not (x.is_floating_point() or x.dtype == torch.uint8) or not x.numel():
        return None
    rows = x.detach().reshape(len(x), -1).double().nan_to_num(0.0, 0.0, 0.0)
    return float(rows.amin(1).median()), float(rows.amax(1).median())


def _label_range(labels: Tensor) -> tuple[int, int] | None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        return None
    counted = labels if labels.dim() < 2 else labels[labels != IGNORED]
    return (int(counted.min()), int(counted.max())) if counted.numel() else None


def _numbers(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, values))[:FIRST]


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).encode("utf-8", "backslashreplace").decode()


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps([_plain(text) for text in texts]).encode()).hexdigest()[:16]
