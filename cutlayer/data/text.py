"""Text: sentences as word numbers for classification, and Shakespeare's characters for saying the next one."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadInput
from .archives import read_gzip
from .files import needed, reading, release_of
from .metadata import Metadata
from .sources import Data, Tensors

LENGTH, VOCABULARY = 64, 8000
MOST_BYTES = 32_000_000  # of an inflated file; the largest has 3.4 million
PADDING, UNKNOWN = 0, 1
SPECIAL = ("<padding>", "<unknown>")  # their tokens
WORD = r"[a-z0-9']+|[^\sa-z0-9']"
NEWS = ("World", "Sports", "Business", "Sci/Tech")
FILES = {
    "sst2": ("sst2/train.tsv.gz", "sst2/test.tsv.gz"),
    "agnews": ("agnews/train_10k.tsv.gz", "agnews/test.tsv.gz"),
}


def sentences(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return SST-2 or AG News as word numbers (n, 64) int64: 0 padding, 1 unknown, then the training words by frequency.

    Words are lower-cased runs of letters, digits or apostrophes, or single other signs; the 7,998 most frequent of the training part
    have a number, ties by the alphabet. Raises BadInput that names the line if a file is missing or damaged.
    """
    classes = list(NEWS) if name == "agnews" else ["0", "1"]
    splits, paths = [], []
    for file in FILES[name]:
        path = needed(data_dir, file)
        with reading(path):
            texts, labels = zip(*_rows(path, classes, header=name == "sst2"), strict=True)
            splits.append((texts, torch.tensor(labels)))
        paths.append(path)
    counts = Counter(word for text in splits[0][0] for word in words(text))
    known = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - 2]
    number = {word: i for i, word in enumerate(known, 2)}
    sources: list[Tensors] = []
    for texts, y in reversed(splits):
        x = torch.stack([_numbers(words(text), number) for text in texts])
        sources.append(Tensors(x, y, len(classes), held_out=sources[0] if sources else None, vocabulary=VOCABULARY))
    metadata = Metadata(
        class_names=classes if name == "agnews" else ("negative", "positive"),
        vocabulary=(*SPECIAL, *known),
        tokenizer=f"lower case, {WORD}, the first {LENGTH}",
    )
    return Data(name, sources[1], sources[0], len(classes), release_of(*paths), metadata)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(WORD, text.lower())


def _numbers(found: Iterable[str], number: dict[str, int]) -> Tensor:
    row = torch.full((LENGTH,), PADDING)
    mine = [number.get(word, UNKNOWN) for word in found][:LENGTH]
    row[: len(mine)] = torch.tensor(mine, dtype=torch.long)
    return row


def _rows(path: Path, classes: Sequence[str], header: bool) -> list[tuple[str, int]]:
    """Return the texts and the numbers of their classes."""
    text = io.StringIO(read_gzip(path, MOST_BYTES).decode("utf-8"), newline="")
    rows = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = []
    for number, row in enumerate(rows[header:], 1 + header):
        if len(row) != 2 or row[1] not in classes:
            raise BadInput(f"{path}, line {number} is not a text, a tab and one of {', '.join(classes)}; get the file again")
        found.append((row[0], classes.index(row[1])))
    return found


def shakespeare(name: str, data_dir: str | None, augment: bool) -> Data:
    """Return Tiny Shakespeare as pieces of 64 characters (n, 64) int64 and their next characters (n, 64), the first 90 % for training.

    Character numbers are ranks of the file's characters from 1 on, as 0 is padding. Raises BadInput if the file is missing or damaged.
    """
    path = needed(data_dir, "shakespeare/input.txt")
    with reading(path):
        text = path.read_text(encoding="ascii")
        rank = {character: i for i, character in enumerate(sorted(set(text)), 1)}
        numbers = torch.tensor([rank[character] for character in text])
    if len(numbers) < 10 * (LENGTH + 1):  # a tenth is held out
        raise BadInput(
            f"{path} has {len(numbers)} characters, and training and test need {10 * (LENGTH + 1)}; get the file again"
        )
    cut = int(0.9 * len(numbers))
    held_out, train = (_pieces(part, len(rank) + 1) for part in (numbers[cut:], numbers[:cut]))
    train.held_out = held_out
    characters = (SPECIAL[PADDING], *rank)
    metadata = Metadata(class_names=characters, vocabulary=characters, tokenizer=f"characters, {LENGTH} a piece")
    return Data(name, train, held_out, len(rank) + 1, release_of(path), metadata)


def _pieces(numbers: Tensor, num_characters: int) -> Tensors:
    n = (len(numbers) - 1) // LENGTH
    x, y = numbers[: n * LENGTH].view(n, LENGTH), numbers[1 : n * LENGTH + 1].view(n, LENGTH)
    return Tensors(x, y, num_characters, vocabulary=num_characters)
