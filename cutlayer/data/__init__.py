"""Data: real sets by name, the user's own, and how they lie with the clients."""

from collections.abc import Callable
from typing import NamedTuple

from ..errors import unknown
from . import folder, graphs, images, partition, tables, text
from .sources import Data, MapStyle, Source, Tensors, from_datasets

__all__ = ["DATASETS", "Data", "MapStyle", "Source", "Tensors", "from_datasets", "load", "partition"]


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
    "sst2": Entry(text.sentences, "67,000 phrases of film reviews, 2 classes, as word numbers (n, 64)"),
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
    name: str, data_dir: str | None = None, num_train: int | None = None, num_test: int | None = None, augment: bool = True
) -> Data:
    """Return a data set by name, only the first `num_train` and `num_test` samples if given.

    Looks in `data_dir`, else $CUTLAYER_DATA, and in the cache; fetches what is missing where there is a network. Raises
    BadInput for an unknown name, too many samples, and missing or damaged files.
    """
    if name not in DATASETS:
        raise unknown("data", name, DATASETS)
    data = DATASETS[name].load(name, data_dir, augment)
    if num_train is None and num_test is None:
        return data
    test = data.test.take(num_test)  # type: ignore[attr-defined]
    return Data(name, data.train.take(num_train, test), test, data.num_classes, data.release)  # type: ignore[attr-defined]
