"""The meaning of a data set's numbers: names of classes and columns, vocabulary, tokenizer."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Subset

from ..errors import BadInput


@dataclass(frozen=True)
class Metadata:
    """The meaning of a data set's numbers, which sites compare before they train together. None: unknown.

    `class_names` by class number and `column_names` by feature; `vocabulary`: the token of each number; `tokenizer`: its name and
    version, or its configuration as text; `statistics`: mean and standard deviation by column, if a site standardises with its own rows.
    """

    class_names: Sequence[str] | None = None
    column_names: Sequence[str] | None = None
    vocabulary: Sequence[str] | None = None
    tokenizer: str | None = None
    statistics: Mapping[str, tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        for field in ("class_names", "column_names"):
            names = getattr(self, field)
            if names is None:
                continue
            wrong = [name for name in names if not isinstance(name, str)]
            repeated = [name for name, times in Counter(map(str, names)).items() if times > 1]
            if wrong or repeated:
                why = "is no text" if wrong else "appears twice"
                raise BadInput(f"{field}: {(wrong or repeated)[0]!r:.60} {why}; give one name for each, all different")
        for name, pair in (self.statistics or {}).items():
            if not isinstance(name, str) or len(pair) != 2 or not all(math.isfinite(value) for value in pair):
                raise BadInput(
                    f"statistics: {name!r:.60} has {pair!r:.60}; give each column's name its mean and standard deviation"
                )
        if not isinstance(self.tokenizer, str | None):
            raise BadInput(
                f"tokenizer = {self.tokenizer!r:.60} is no text; give its name and version, or its configuration as text"
            )
        if wrong := [token for token in self.vocabulary or () if not isinstance(token, str)]:
            raise BadInput(f"vocabulary: {wrong[0]!r:.60} is no text; give the token of each number")


UNKNOWN = Metadata()


def with_class_names(metadata: Metadata, train: Any, test: Any, num_classes: int) -> Metadata:
    """Return the metadata with the class names of two map-style data sets, if it has none of its own.

    Raises BadInput if the two splits number their classes differently.
    """
    if metadata.class_names is not None:
        return metadata
    names, others = read_class_names(train, num_classes), read_class_names(test, num_classes)
    if names and others and names != others:
        at = next(i for i, pair in enumerate(zip(names, others, strict=True)) if pair[0] != pair[1])
        raise BadInput(
            f"class {at} is {names[at]!r:.60} in the training data and {others[at]!r:.60} in the test data; number the classes alike"
        )
    return replace(metadata, class_names=names or others)


def read_class_names(dataset: Any, num_classes: int) -> list[str] | None:
    """Return class names by number from torchvision's attributes `class_to_idx` or `classes`; None unless they name every class."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    numbers, names = getattr(dataset, "class_to_idx", None), getattr(dataset, "classes", None)
    if isinstance(numbers, Mapping) and sorted(numbers.values(), key=str) == sorted(range(num_classes), key=str):
        names = sorted(numbers, key=lambda name: numbers[name])
    if not isinstance(names, list | tuple) or len(names) != num_classes:
        return None
    shown = [
        name if isinstance(name, str) else ", ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names
    ]
    return shown if len(set(shown)) == num_classes else None
