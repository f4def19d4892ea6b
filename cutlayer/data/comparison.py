"""Comparison of two sites' data: differences that forbid training together, and remarks on what is left open."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from .description import DataDescription, Names

MOST_SCALE = 20.0  # by which value ranges, deviations and means in deviations may differ: 0..1 and 0..255 differ by 255
CONSTANT = 0.01  # of a standard deviation: normalisation constants may be rounded
SHOWN = 2  # differences of a list that are shown
SHOWN_NAME = 40  # characters

EXACT = {
    "num_classes": "the number of classes", "input_shape": "the input shape", "input_dtype": "the input dtype",
    "target_shape": "the target shape", "vocabulary_size": "the vocabulary size",
    "vocabulary": "the vocabulary's hash", "tokenizer": "the tokenizer's hash",
}  # fmt: skip


class Sides(NamedTuple):
    """How a sentence calls the two descriptions that it compares."""

    first: str
    second: str


def differences(server: DataDescription, client: DataDescription, name: str | Sides) -> list[str]:
    """Return in sentences how a client's data differ from the server's so that both cannot train one network.

    `name` is the client's, or the words for both sides.
    """
    name = name if isinstance(name, Sides) else Sides("at the server", f"at {name}")
    return [
        *_names("class", server.class_names, client.class_names, name),
        *_exact(server, client, name),
        *_labels(server, client, name),
        *_names("column", server.column_names, client.column_names, name),
        *_constants(server, client, name),
        *_scales(server, client, name),
    ]


def remarks(server: DataDescription, client: DataDescription) -> list[str]:
    """Return in sentences what could not be compared, and differences that honest data may have."""
    pairs = {
        "class names": (server.has_classes, server.class_names, client.class_names),
        "column names": (_is_table(server), server.column_names, client.column_names),
        "normalisation": (not server.has_tokens, server.normalisation, client.normalisation),
        "vocabulary": (server.has_tokens, server.vocabulary, client.vocabulary),
        "tokenizer": (server.has_tokens, server.tokenizer, client.tokenizer),
    }
    unknown = [what for what, (applies, *both) in pairs.items() if applies and None in both]
    found = [f"{', '.join(unknown)} could not be compared, because one side does not state them"] if unknown else []
    if server.value_range and client.value_range and _signs_differ(server.value_range, client.value_range):
        found.append(
            f"values are {_range(server.value_range)} at the server and {_range(client.value_range)} there; "
            "check that both normalise alike"
        )
    if server.statistics and client.statistics and server.statistics != client.statistics:
        found.append("each side standardises its columns with statistics of its own rows, and these differ")
    return found


def _said(what: str, name: Sides, server: Any, client: Any) -> str:
    return f"{what} is {server} {name.first} and {client} {name.second}"


def _exact(server: DataDescription, client: DataDescription, name: Sides) -> list[str]:
    found = []
    for field, what in EXACT.items():
        a, b = getattr(server, field), getattr(client, field)
        if a is not None and b is not None and a != b:
            found.append(_said(what, name, a, b))
    return found


def _names(what: str, server: Names | None, client: Names | None, name: Sides) -> list[str]:
    """Return the first positions at which two lists of names differ."""
    if server is None or client is None or (server.count, server.digest) == (client.count, client.digest):
        return []
    listed = max(len(server.first), len(client.first))
    a, b = (_padded(names.first, listed) for names in (server, client))
    at = [i for i in range(listed) if a[i] != b[i]]
    found = [_said(f"{what} {i}", name, a[i], b[i]) for i in at[:SHOWN]]
    if len(at) > SHOWN:
        found[-1] += f" ({len(at) - SHOWN} more differ)"
    if not found:
        beside = [f"{names.count} with hash {names.digest}" for names in (server, client)]
        found = [_said(f"the list of {what} names after the first {listed}", name, *beside)]
    return found


def _padded(names: Sequence[str], length: int) -> list[str]:
    return [f"{name[:SHOWN_NAME]!r}" for name in names] + ["missing"] * (length - len(names))


def _labels(server: DataDescription, client: DataDescription, name: Sides) -> list[str]:
    """Return that targets are of another kind, or class numbers that lie outside the server's."""
    if _kind(server.target_dtype) != _kind(client.target_dtype):
        return [_said("the target dtype", name, server.target_dtype, client.target_dtype)]
    if not server.has_classes or client.label_range is None or server.num_classes is None:
        return []
    low, high = client.label_range
    if low >= 0 and high < server.num_classes:
        return []
    return [f"labels are class numbers 0..{server.num_classes - 1} {name.first} and {low}..{high} {name.second}"]


def _constants(server: DataDescription, client: DataDescription, name: Sides) -> list[str]:
    """Return the first channel that two sites normalise with other constants."""
    if server.normalisation is None or client.normalisation is None:
        return []
    length = max(map(len, (*server.normalisation, *client.normalisation)))
    columns = [values * length if len(values) == 1 else values for values in (*server.normalisation, *client.normalisation)]
    for i, (mean, std, other_mean, other_std) in enumerate(zip(*columns, strict=False)):
        if max(abs(mean - other_mean), abs(std - other_std)) > CONSTANT * abs(std):
            both = [f"mean {m:.4g} and std {s:.4g}" for m, s in ((mean, std), (other_mean, other_std))]
            return [_said(f"the normalisation of channel {i}", name, *both)]
    return []


def _scales(server: DataDescription, client: DataDescription, name: Sides) -> list[str]:
    """Return values or columns whose scales differ by more than MOST_SCALE."""
    found = []
    if server.value_range and client.value_range and _far(_largest(server.value_range), _largest(client.value_range)):
        ranges = [f"about {_range(values)}" for values in (server.value_range, client.value_range)]
        found.append(f"{_said('the value range', name, *ranges)}; scales may differ by a factor of at most {MOST_SCALE:g}")
    for column, (mean, std) in (server.statistics or {}).items():
        other_mean, other_std = (client.statistics or {}).get(column, (mean, std))
        if _far(std, other_std) or abs(mean - other_mean) > MOST_SCALE * max(std, other_std, 1e-12):
            said = [f"mean {m:.4g} and deviation {s:.4g}" for m, s in ((mean, std), (other_mean, other_std))]
            found.append(_said(f"column {column[:SHOWN_NAME]!r}", name, *said))
    return found


def _kind(dtype: str) -> str:
    """Return a dtype without its width."""
    return dtype.rstrip("0123456789").removeprefix("u").replace("bfloat", "float")


def _far(a: float, b: float) -> bool:
    """Return whether two scales differ by more than MOST_SCALE; a scale of 0 is that of a constant, and compares with nothing."""
    return min(a, b) > 0 and max(a, b) > MOST_SCALE * min(a, b)


def _signs_differ(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Return whether values are never negative at one side, and clearly so at the other."""
    negative = [low < -0.1 * _largest((low, high)) for low, high in (a, b)]
    return negative[0] != negative[1] and max(a[0], b[0]) >= 0


def _largest(values: tuple[float, float]) -> float:
    return max(map(abs, values))


def _range(values: tuple[float, float]) -> str:
    return " to ".join(f"{value:.3g}" for value in values)


def _is_table(description: DataDescription) -> bool:
    return len(description.input_shape) == 1 and not description.has_tokens
