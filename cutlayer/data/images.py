"""CIFAR-10/100 from Parquet or the official binary archive, MNIST and Fashion-MNIST from idx files."""

import io
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image

from ..errors import BadInput
from . import augment as augmentation
from .archives import read_gzip, read_tar_gzip, too_large
from .files import decoded, fetch, joined, locate, reading
from .metadata import Metadata
from .sources import Data, Tensors

Arrays = tuple[np.ndarray, np.ndarray]

IDX_MOST_BYTES = 3 * 47_040_016  # of an inflated file, three times the training images
CIFAR_MOST_BYTES = 3 * 184_440_000  # of the inflated archive, or of all decoded images
PARQUET_MOST_BYTES = 3 * 75_394_799  # of the uncompressed columns of a file

# the constants of the code of arXiv 2601.19261; CIFAR-10's std is the one everybody copies, not the set's own
CIFAR_MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
CIFAR_ARCHIVES = {
    "cifar10": ("cifar-10-binary.tar.gz", "md5:c32a1d4ab5d03f1284b67883e8d87530"),
    "cifar100": ("cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8"),
}
CIFAR_FOLDERS = {  # the archives unpacked: training files, then the test file
    "cifar10": ("cifar-10-batches-bin", (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")),
    "cifar100": ("cifar-100-binary", ("train.bin", "test.bin")),
}
ROWS = 1000  # of a Parquet file that are read together
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
CLASSES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "cifar100": (
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar "
        "cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl "
        "hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom "
        "oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road "
        "rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank "
        "telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    ).split(),
    "mnist": list("0123456789"),
    "fashion_mnist": "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","),
}
IDX = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432"),
        ("9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
        ((0.1307,), (0.3081,)),
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
        ("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
        ((0.2860,), (0.3530,)),
    ),
}


def cifar(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return CIFAR-10 or CIFAR-100 as uint8 images (n, 3, 32, 32), with crops and flips in training if `augment`."""
    splits = []
    here = locate(data_dir, f"{name}/train.parquet", f"{name}/test.parquet")
    for split in ("train", "test"):
        if here is not None:
            path = here.with_name(f"{split}.parquet")
            if not path.exists():
                raise BadInput(f"{path} is missing, and {here.name} is there; put both into one folder")
            splits.append(decoded(path, read_parquet))
            continue
        x, y, release = _official(name, data_dir)
        # both splits lie in one archive: 50,000 training images, then the test images
        splits.append((x[:50_000], y[:50_000], release) if split == "train" else (x[50_000:], y[50_000:], release))
    return _data(name, splits, CIFAR_MEAN_STD[name], augmentation.crop_flip if augment else None)


def _official(name: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray, str]:
    archive, known_hash = CIFAR_ARCHIVES[name]
    folder, names = CIFAR_FOLDERS[name]
    fine = name == "cifar100"
    path = locate(data_dir, archive, f"{name}/{archive}")
    unpacked = locate(data_dir, folder, f"{name}/{folder}") if path is None else None
    if unpacked is not None:
        files = [unpacked / file for file in names]
        absent = next((file for file in files if not file.is_file()), None)
        if absent is not None:
            raise BadInput(f"{absent} is missing; unpack {archive} again")
        return decoded(files[0], lambda _: read_cifar_files(files, fine), files[1:])
    path = path or fetch(CIFAR_URL + archive, known_hash, archive)
    return decoded(path, partial(read_cifar_archive, fine=fine))


def mnist(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return MNIST or Fashion-MNIST as uint8 images (n, 1, 28, 28); there is no augmentation."""
    url, train, test, mean_std = IDX[name]
    splits = []
    for prefix, md5s in (("train", train), ("t10k", test)):
        files = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
        images, labels = (
            locate(data_dir, f"{name}/{file}") or fetch(url + file, f"md5:{md5}", f"{name}/{file}")
            for file, md5 in zip(files, md5s, strict=True)
        )
        splits.append(decoded(images, partial(read_idx, labels=labels), (labels,)))
    return _data(name, splits, mean_std, None)


def _data(
    name: str,
    splits: list[tuple[np.ndarray, np.ndarray, str]],
    mean_std: tuple[tuple[float, ...], tuple[float, ...]],
    augment: object,
) -> Data:
    (x, y, release), (test_x, test_y, test_release) = splits
    num_classes = len(CLASSES[name])
    test = Tensors(torch.from_numpy(test_x), torch.from_numpy(test_y), num_classes, *mean_std)
    train = Tensors(torch.from_numpy(x), torch.from_numpy(y), num_classes, *mean_std, augment=augment, held_out=test)  # type: ignore[arg-type]
    return Data(name, train, test, num_classes, joined(release, test_release), Metadata(class_names=CLASSES[name]))


def read_parquet(path: Path) -> Arrays:
    """Return images (n, C, H, W) uint8 and labels (n,) of a Parquet file with columns image (JPEG or PNG) and label.

    Raises BadInput if its columns or its images inflate to more than CIFAR's by far: what the footer says is checked first, then
    what is read, a few rows at a time.
    """
    images, labels, left = list[np.ndarray](), list[np.ndarray](), PARQUET_MOST_BYTES
    with parquet.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > left:
            raise too_large(path, PARQUET_MOST_BYTES)
        for rows in file.iter_batches(ROWS, columns=["image", "label"]):
            left -= rows.nbytes
            if left < 0:
                raise too_large(path, PARQUET_MOST_BYTES)
            labels.append(rows["label"].to_numpy(zero_copy_only=False).astype(np.int64))
            images += [_decode(path, data, file.metadata.num_rows) for data in rows["image"].to_pylist()]
    x = np.stack(images) if images else np.empty((0,), np.uint8)
    return x, np.concatenate(labels) if labels else np.empty((0,), np.int64)


def _decode(path: Path, data: Any, num_rows: int) -> np.ndarray:
    """Return an image (3, H, W), unless as many of its size are more than CIFAR's by far."""
    opened = Image.open(io.BytesIO(data["bytes"] if isinstance(data, dict) else data))  # the data-set hub wraps the bytes
    if 3 * opened.width * opened.height * num_rows > CIFAR_MOST_BYTES:
        raise too_large(path, CIFAR_MOST_BYTES)
    return np.ascontiguousarray(np.asarray(opened.convert("RGB")).transpose(2, 0, 1))


def read_cifar_archive(path: Path, fine: bool) -> Arrays:
    """Return the images and (fine) labels of the official binary archive: training batches first, then the test batch."""
    blobs = read_tar_gzip(path, ".bin", CIFAR_MOST_BYTES)
    return _cifar_rows(path, b"".join(blobs[name] for name in sorted(blobs, key=lambda name: ("test" in name, name))), fine)


def read_cifar_files(files: list[Path], fine: bool) -> Arrays:
    """Return the images and (fine) labels of the unpacked official binary files, in the order given."""
    blobs = []
    for file in files:
        blobs.append(file.read_bytes())
        if not blobs[-1] or len(blobs[-1]) % (3074 if fine else 3073):
            raise BadInput(f"{file} is truncated or damaged ({len(blobs[-1])} bytes); get the file again")
    return _cifar_rows(files[0].parent, b"".join(blobs), fine)


def _cifar_rows(path: Path, raw: bytes, fine: bool) -> Arrays:
    skip = 2 if fine else 1
    rows = np.frombuffer(raw, np.uint8).reshape(-1, skip + 3072)
    if len(rows) != 60_000:
        raise BadInput(f"{path} holds {len(rows)} images, not 60,000; get the file again")
    return rows[:, skip:].reshape(-1, 3, 32, 32).copy(), rows[:, skip - 1].astype(np.int64)


def read_idx(path: Path, labels: Path) -> Arrays:
    """Return the images (n, 1, H, W) and labels (n,) of two gzipped idx files."""
    arrays = []
    for file in (path, labels):
        with reading(file):
            raw = read_gzip(file, IDX_MOST_BYTES)
            rank = raw[3]
            shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
            arrays.append(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape))
    return arrays[0][:, None].copy(), arrays[1].astype(np.int64)
