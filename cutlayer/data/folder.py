"""Folders of images of any size, one folder for each class, read from disk batch by batch."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..descriptors import is_exhausted, wait_for_descriptors
from ..errors import BadInput
from ..streams import self_contained
from ..task import Batch
from .files import folders
from .metadata import Metadata
from .sources import Data, Source

SIDE, SHORTER = 224, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
READERS = 4  # decoding lets other threads run
ORDER_SEED = 0


@dataclass
class Folder:
    """Images on disk, (3, 224, 224) when they are read: a random crop and flip in training if `augment`, else the middle.

    Only paths and labels are held in memory; raises BadInput naming a file that cannot be read.
    """

    paths: Sequence[Path]
    labels: Tensor
    num_classes: int
    augment: bool = False
    held_out: Source | None = None
    device: str = "cpu"
    side: int = SIDE

    def __post_init__(self) -> None:
        self._mean, self._std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (MEAN, STD))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    @property
    def sample_bytes(self) -> int:
        return 3 * self.side**2

    @property
    def normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        return MEAN, STD

    def __len__(self) -> int:
        return len(self.paths)

    @self_contained
    def batch(self, index: Tensor, generator: torch.Generator | None) -> Batch:
        paths = [self.paths[i] for i in index.tolist()]
        random = generator is not None and self.augment
        # drawn before the images are read, so that the threads' order does not matter
        draws = torch.rand(len(paths), 5, generator=generator) if random else [None] * len(paths)
        with ThreadPoolExecutor(READERS) as readers:
            images = list(readers.map(partial(read, side=self.side), paths, draws))
        x = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        return Batch((x - self._mean) / self._std, self.labels[index.to(self.labels.device)], ids=index)

    def to_unit(self, x: Tensor) -> Tensor:
        return (x * self._std + self._mean).clamp(0, 1)

    def to(self, device: str) -> "Folder":
        held_out = self.held_out.to(device) if self.held_out else None
        return Folder(self.paths, self.labels.to(device), self.num_classes, self.augment, held_out, device, self.side)

    def take(self, which: slice, held_out: Source | None) -> "Folder":
        """Return some of the images, whose order is a fixed shuffle; what is evaluated on nothing is itself not augmented."""
        augment = self.augment and held_out is not None
        return Folder(self.paths[which], self.labels[which], self.num_classes, augment, held_out, self.device, self.side)


@wait_for_descriptors
def read(path: Path, draw: Tensor | None, side: int) -> np.ndarray:
    """Return an image (side, side, 3): a random crop of 8 to 100 % of it, of ratio 3/4 to 4/3, perhaps flipped; or its middle.

    `draw` has five numbers in [0, 1): area, ratio, two places, flip. Raises BadInput if the file is no image.
    """
    try:
        with Image.open(path) as opened:
            deep = opened.mode.startswith("I")  # 16 bits, which convert would clip
            image = Image.fromarray((np.asarray(opened) / 256).clip(0, 255).astype(np.uint8)) if deep else opened
            image = image.convert("RGB")
    except Exception as error:  # whatever a decoder raises on a damaged file
        if is_exhausted(error):
            raise
        raise BadInput(f"{path} cannot be read as an image ({error}); delete or replace it") from error
    width, height = image.size
    if draw is None:
        edge = min(width, height) * side / SHORTER  # the shorter side is scaled to 256, and the middle 224 are taken
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
        return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))
    area, ratio, x, y, flip = draw.tolist()
    edge2, ratio = width * height * (0.08 + 0.92 * area), float(np.exp(np.log(3 / 4) + ratio * np.log(16 / 9)))
    w, h = min(width, (edge2 * ratio) ** 0.5), min(height, (edge2 / ratio) ** 0.5)
    left, top = x * (width - w), y * (height - h)
    image = image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else image)


def image_folder(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return train/CLASS/*.jpg and val/CLASS/*.jpg (or test/) of `data_dir`; classes are numbered in the order of their names.

    Raises BadInput if a split is missing or empty, or if the splits have other classes.
    """
    searched = folders(data_dir)
    root = next((folder for folder in searched if (folder / "train").is_dir()), None)
    if root is None:
        raise BadInput(
            f"data = {name!r}: there is no train/ in {' or '.join(map(str, searched))}; "
            "name a folder with train/CLASS/*.jpg and val/CLASS/*.jpg with --data-dir or CUTLAYER_DATA"
        )
    held = next((root / split for split in ("val", "test") if (root / split).is_dir()), None)
    if held is None:
        raise BadInput(f"{root} has train/ and neither val/ nor test/; put images to evaluate on there")
    classes, other = ([path.name for path in sorted(split.glob("[!.]*")) if path.is_dir()] for split in (root / "train", held))
    if not classes and not other:
        what = f"train/ and {held.name}/ have no folders of classes; put images into train/CLASS/ and {held.name}/CLASS/"
        raise BadInput(f"{root}: {what}")
    if classes != other:
        odd = sorted(set(classes) ^ set(other))[:3]
        raise BadInput(
            f"{root}: train/ and {held.name}/ need the same classes as folders; only one of them has {', '.join(odd)}"
        )
    test = _split(held, classes, False, None)
    train = _split(root / "train", classes, augment, test)
    files = sorted((str(path.relative_to(root)), path.stat().st_size) for path in (*train.paths, *test.paths))
    what = hashlib.sha256(repr(files).encode()).hexdigest()[:12]
    release = f"{len(files)} images, sha256 of names and sizes {what}"
    return Data(name, train, test, len(classes), release, Metadata(class_names=classes))


def _split(folder: Path, classes: Sequence[str], augment: bool, held_out: Folder | None) -> Folder:
    found = [
        (path, k) for k, c in enumerate(classes) for path in sorted((folder / c).iterdir()) if path.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise BadInput(f"{folder} has no images ({', '.join(SUFFIXES)})")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(ORDER_SEED)).tolist()
    paths, labels = [found[i][0] for i in order], torch.tensor([found[i][1] for i in order])
    return Folder(paths, labels, len(classes), augment, held_out)
