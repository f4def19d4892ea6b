"""The data sets that come with scikit-learn: real data without a download."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split

from .sources import Data, Tensors

SPLIT_SEED = 0  # the split is part of the data set: it does not follow a run's seed


def digits(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return 1797 handwritten digits as images (n, 1, 8, 8) in 0..16, 80 % of each class for training."""
    raw = load_digits()
    x = raw.images.astype(np.float32)[:, None]
    parts = train_test_split(x, raw.target, test_size=0.2, random_state=SPLIT_SEED, stratify=raw.target)
    return _data(name, parts, 10, (4.88,), (6.02,), 16.0)


def breast_cancer(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return 569 tumours as vectors (n, 30), standardised by the training part, 80 % of each class for training."""
    raw = load_breast_cancer()
    x, test_x, y, test_y = train_test_split(raw.data, raw.target, test_size=0.2, random_state=SPLIT_SEED, stratify=raw.target)
    mean, std = x.mean(0), x.std(0)
    scaled = [((part - mean) / std).astype(np.float32) for part in (x, test_x)]
    return _data(name, (*scaled, y, test_y), 2, (0.0,), (1.0,), 4.0, low=-4.0)


def _data(
    name: str,
    parts: tuple[np.ndarray, ...],
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    high: float,
    low: float = 0.0,
) -> Data:
    x, test_x, y, test_y = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    test = Tensors(test_x, test_y.long(), num_classes, mean, std, low=low, high=high)
    train = Tensors(x, y.long(), num_classes, mean, std, held_out=test, low=low, high=high)
    return Data(name, train, test, num_classes, "bundled with scikit-learn")
