"""Tables: the sets that come with scikit-learn, real data without a download, and UCI Adult."""

import re
from pathlib import Path

import numpy as np
import torch

from ..errors import BadInput
from .files import needed, reading, release_of
from .metadata import Metadata
from .sources import Data, Tensors

ATTRIBUTES = (  # of Adult
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race", "sex",
    "capital-gain", "capital-loss", "hours-per-week", "native-country",
)  # fmt: skip
NUMBERS = (0, 2, 4, 10, 11, 12)  # attributes of Adult that are numbers
INCOMES = ("<=50K", ">50K")
SPLIT_SEED = 0  # the split is part of the data set: it does not follow a run's seed


def digits(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return 1797 handwritten digits as images (n, 1, 8, 8) in 0..16, 80 % of each class for training."""
    from sklearn.datasets import load_digits  # importing scikit-learn takes nearly as long as torch
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    x = raw.images.astype(np.float32)[:, None]
    parts = train_test_split(x, raw.target, test_size=0.2, random_state=SPLIT_SEED, stratify=raw.target)
    return _data(name, parts, (4.88,), (6.02,), 16.0, Metadata(class_names=list("0123456789")))


def breast_cancer(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return 569 tumours as vectors (n, 30), standardised by the training part, 80 % of each class for training."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    raw = load_breast_cancer()
    x, test_x, y, test_y = train_test_split(raw.data, raw.target, test_size=0.2, random_state=SPLIT_SEED, stratify=raw.target)
    mean, std = x.mean(0), x.std(0)
    scaled = [((part - mean) / std).astype(np.float32) for part in (x, test_x)]
    metadata = Metadata(
        class_names=[str(each) for each in raw.target_names], column_names=[str(each) for each in raw.feature_names]
    )
    return _data(name, (*scaled, y, test_y), (0.0,), (1.0,), 4.0, metadata, low=-4.0)


def adult(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return UCI Adult as vectors: numbers standardised by the training part, categories one-hot ("?" is one), official split.

    Raises BadInput that names the line if a file is missing or damaged.
    """
    parts, paths = [], []
    for file in ("adult/adult.data", "adult/adult.test"):
        path = needed(data_dir, file)
        with reading(path):
            rows = [_adult(path, i, line) for i, line in enumerate(path.read_text().splitlines(), 1) if line and line[0] != "|"]
        if not rows:
            raise BadInput(f"{path} has no line of data; get the file again")
        paths.append(path)
        parts.append(([row for row, _ in rows], np.array([label for _, label in rows], dtype=np.int64)))
    x, test_x, metadata = _columns(parts[0][0], parts[1][0])
    both = (x, test_x, parts[0][1], parts[1][1])
    return _data(name, both, (0.0,), (1.0,), 4.0, metadata, low=-4.0, release=release_of(*paths))


def _adult(path: Path, number: int, line: str) -> tuple[list[str], int]:
    """Return a line's attributes and its class."""
    *attributes, label = line.rstrip(".").split(", ")
    if len(attributes) != 14 or label not in INCOMES:
        raise BadInput(f"{path}, line {number} is not 14 attributes and one of {', '.join(INCOMES)}; get the file again")
    wrong = next((attributes[i] for i in NUMBERS if not re.fullmatch("-?[0-9]+", attributes[i])), None)
    if wrong is not None:
        raise BadInput(f"{path}, line {number}: {wrong!r} is no number; get the file again")
    return attributes, INCOMES.index(label)


def _columns(train: list[list[str]], test: list[list[str]]) -> tuple[np.ndarray, np.ndarray, Metadata]:
    """Return both splits as vectors, and the names of their columns with the statistics that numbers are standardised by."""
    both: list[list[np.ndarray]] = [[], []]
    names, statistics = list[str](), dict[str, tuple[float, float]]()
    for i, (mine, theirs) in enumerate(zip(zip(*train, strict=True), zip(*test, strict=True), strict=True)):
        if i in NUMBERS:
            numbers = np.array(mine, dtype=np.float64)
            scale = numbers.std() or 1.0  # a column of one number is left at zero
            names.append(ATTRIBUTES[i])
            statistics[ATTRIBUTES[i]] = float(numbers.mean()), float(numbers.std())
            for into, column in zip(both, (mine, theirs), strict=True):
                into.append(((np.array(column, dtype=np.float64) - numbers.mean()) / scale)[:, None])
        else:
            known = sorted(set(mine))
            names += [f"{ATTRIBUTES[i]}={value}" for value in known]
            for into, column in zip(both, (mine, theirs), strict=True):
                into.append(np.array([[value == each for each in known] for value in column]))
    x, test_x = (np.concatenate(columns, 1).astype(np.float32) for columns in both)
    return x, test_x, Metadata(class_names=INCOMES, column_names=names, statistics=statistics)


def _data(
    name: str,
    parts: tuple[np.ndarray, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    high: float,
    metadata: Metadata,
    low: float = 0.0,
    release: str = "bundled with scikit-learn",
) -> Data:
    num_classes = len(metadata.class_names or ())
    x, test_x, y, test_y = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    test = Tensors(test_x, test_y.long(), num_classes, mean, std, low=low, high=high)
    train = Tensors(x, y.long(), num_classes, mean, std, held_out=test, low=low, high=high)
    return Data(name, train, test, num_classes, release, metadata)
