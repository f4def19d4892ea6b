"""Data: real sets by name, the user's own, and how they lie with the clients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from ..errors import BadInput, unknown
from . import folder, graphs, images, partition, tables, text
from .metadata import Metadata
from .sources import Data, MapStyle, Source, Tensors, from_datasets

__all__ = ["DATASETS", "Data", "MapStyle", "Metadata", "Source", "Tensors", "from_datasets", "load", "partition"]


class Entry(NamedTuple):
    """A row of the table: what loads (name, data_dir, augment), and one line about it."""

    load: Callable[[str, str | None, bool], Data]
    line: str


DATASETS: dict[str, Entry] = {
    "digits": Entry(tables.digits, "1,797 handwritten digits 8x8, 10 classes, bundled with scikit-learn"),
    "breast_cancer": Entry(tables.breast_cancer, "569 tumours, 30 measurements, 2 classes, bundled with scikit-learn"),
    "cifar10": Entry(images.cifar, "60,000 colour images 32x32, 10 classes (Parquet or official binary)"),
    "cifar100": Entry(images.cifar, "60,000 colour images 32x32, 100 classes (Parquet or official binary)"),
    "mnist": Entry(images.mnist, "70,000 handwritten digits 28x28, 10 classes (idx files)"),
    "fashion_mnist": Entry(images.mnist, "70,000 pictures of clothes 28x28, 10 classes (idx files)"),
    "image_folder": Entry(
        folder.image_folder, "your own images: DATA_DIR/train/CLASS/*.jpg and DATA_DIR/val/CLASS/*.jpg, read at 224x224"
    ),
    "sst2": Entry(text.sentences, "60,600 phrases of film reviews, 2 classes, as word numbers (n, 64)"),
    "agnews": Entry(text.sentences, "17,601 news texts, 4 classes, as word numbers (n, 64)"),
    "shakespeare": Entry(text.shakespeare, "1.1 million characters in pieces of 64, the next character of each"),
    "adult": Entry(tables.adult, "48,842 people, 14 attributes, income above 50,000 dollars or not"),
    "mutag": Entry(graphs.tudataset, "188 molecules as graphs, 2 classes (TUDataset)"),
    "proteins": Entry(graphs.tudataset, "1,113 proteins as graphs, 2 classes (TUDataset)"),
    "nci1": Entry(graphs.tudataset, "4,110 compounds as graphs, 2 classes (TUDataset)"),
    "enzymes": Entry(graphs.tudataset, "600 enzymes as graphs, 6 classes (TUDataset)"),
    "imdb_binary": Entry(graphs.tudataset, "1,000 casts of films as graphs without node labels, 2 classes (TUDataset)"),
}


def load(
    name: str,
    data_dir: str | None = None,
    num_train: int | None = None,
    num_test: int | None = None,
    augment: bool = True,
    num_held_out: int | None = None,
) -> Data:
    """Return a data set by name, only the first `num_train` and `num_test` samples if given.

    With `num_held_out` so many training samples, the last, are what is evaluated on instead of the test set.
    Looks in `data_dir`, else $CUTLAYER_DATA, and in the cache; fetches what is missing where there is a network. Raises
    BadInput for an unknown name, too many samples, and missing or damaged files.
    """
    if name not in DATASETS:
        raise unknown("data", name, DATASETS)
    data = DATASETS[name].load(name, data_dir, augment)
    if num_train is None and num_test is None and num_held_out is None:
        return data
    rest = len(data.train) - (num_held_out or 0)
    wanted = (
        ("num_held_out", num_held_out, len(data.train) - 1),
        ("num_train", num_train, rest),
        ("num_test", num_test, len(data.test)),
    )
    for field, n, there in wanted:
        if n is not None and not 1 <= n <= there:
            raise BadInput(f"{field} = {n}: {n} samples are wanted and there are {there}; lower it")
    source: Any = data.test if num_held_out is None else data.train
    test: Source = source.take(slice(num_test) if num_held_out is None else slice(rest, None), None)
    train: Source = data.train.take(slice(rest if num_train is None else num_train), test)  # type: ignore[attr-defined]
    return replace(data, train=train, test=test)
