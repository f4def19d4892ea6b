"""Finding data files, knowing their release by hash, fetching what is missing, and keeping what was decoded."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pooch

from ..errors import BadInput

RELEASES = {  # SHA-256, or the MD5 that its publisher gives, of a file: which copy of the data it belongs to
    "aad2d87cdadd3d1cc659340c89db8f7e94510cc554417bd21302d2489bdff767": "CIFAR-10, JPEG quality 95",
    "aeee61c3443666720a329331e7023179b0aebf6e7c696c5a368234a04a22dcc5": "CIFAR-10, JPEG quality 95",
    "873ac1a484a5a980bc8de1fb43bddbdc7a33d89f87326107d2a8711a353957f8": "CIFAR-100, JPEG quality 95",
    "02a67644dc567a9b85aac52e72a7f4a29dcd41f9e2e54ff08c0bc2482f9c62ce": "CIFAR-100, JPEG quality 95",
    "c32a1d4ab5d03f1284b67883e8d87530": "CIFAR-10, official binary",
    "03b5dce01913d631647c71ecec9e9cb8": "CIFAR-100, official binary",
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609": "MNIST, original",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6": "MNIST, original",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c": "MNIST, original",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6": "MNIST, original",
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84": "Fashion-MNIST, original",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073": "Fashion-MNIST, original",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845": "Fashion-MNIST, original",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5": "Fashion-MNIST, original",
    "18e9c27c56a0751887c6597c16d2e75b4550ada5b757472cf3eec479538afeac": "TUDataset ENZYMES, original",
    "d4e052793e9e5f91079abf6569ec490f6878e4cf8416305d8746b5636b6d0c3f": "TUDataset IMDB-BINARY, original",
    "38e572babf0207a56b13ebfeb5ce8a1fc9c9a4ba6a48a2aad0894418845c6cc0": "TUDataset MUTAG, original",
    "79a2833ca93357b18c32406fa3f6ab7fa3709c121e4bd52b73740dde707622bb": "TUDataset NCI1, original",
    "dde9a6fe2cdac336d3b622bfa53663269304d10c01033c86083847a21ae3d4ba": "TUDataset PROTEINS, original",
    "6ca4e5263d501878f4d62f077157b7bb7d9963542c55bc6800442efc42ffa92e": "SST-2, tab-separated",
    "19553efc6f7bac0b7fdd37d4e29dc37c15e9e779767249a16f857fbfcedb23fa": "SST-2, tab-separated",
    "09d2803c53bc689218bc73519ae3db680d7c9833d75e07532821482e81feeeef": "AG News, first 10,000, tab-separated",
    "fc730377d963833c51b8f05e06d9456774db4421007b1957b0e7e401582c0720": "AG News, first 10,000, tab-separated",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed": "Tiny Shakespeare",
    "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d": "UCI Adult",
    "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05": "UCI Adult",
}


def cache_dir() -> Path:
    """Return where downloads and decoded arrays are kept: $XDG_CACHE_HOME/cutlayer, else ~/.cache/cutlayer."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutlayer"


def folders(data_dir: str | None) -> list[Path]:
    """Return the folders that are searched, in order; raises BadInput if the one that was named is none."""
    named = data_dir or os.environ.get("CUTLAYER_DATA")
    if named and not Path(named).is_dir():
        raise BadInput(f"data_dir = {named!r} is no folder; name the one that holds cifar10/, mnist/, ...")
    return ([Path(named)] if named else []) + [cache_dir() / "data"]


def locate(data_dir: str | None, *names: str) -> Path | None:
    """Return the first of these relative paths that exists in a searched folder."""
    return next((folder / name for folder in folders(data_dir) for name in names if (folder / name).exists()), None)


def fetch(url: str, known_hash: str, name: str, say: Callable[[str], None] = print) -> Path:
    """Download a file into the cache, hash-checked; raises BadInput that says which file to put where if it cannot be had."""
    remedy = f"put {name} into a folder and name that with --data-dir or CUTLAYER_DATA"
    if os.environ.get("CUTLAYER_OFFLINE"):
        raise BadInput(f"{name} is in none of the data folders, and CUTLAYER_OFFLINE is set; {remedy}")
    target = cache_dir() / "data" / name
    say(f"fetching {url}")
    try:
        downloader = pooch.HTTPDownloader(timeout=15)
        pooch.retrieve(url, known_hash, fname=target.name, path=target.parent, downloader=downloader)
    except Exception as error:
        raise BadInput(
            f"{name} is in none of the data folders and cannot be fetched ({type(error).__name__}); {remedy}"
        ) from error
    return target


def hashes(path: Path) -> tuple[str, str]:
    """Return a file's SHA-256 and MD5."""
    digests = []
    for kind in ("sha256", "md5"):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, kind).hexdigest())
    return digests[0], digests[1]


def release_of(train: Path, test: Path | None = None) -> str:
    """Return which copy of the data a file, or a training and a test file, belong to, by their hashes."""
    release = _release(*hashes(train))
    return release if test is None else joined(release, _release(*hashes(test)))


def joined(release: str, test: str) -> str:
    """Return the release of data whose training and test part are of these."""
    return release if release == test else f"{release}; test: {test}"


def _release(digest: str, md5: str) -> str:
    return RELEASES.get(digest) or RELEASES.get(md5) or f"unrecognised {digest[:12]}"


def needed(
    data_dir: str | None, *names: str, remedy: str = "put it into one and name that with --data-dir or CUTLAYER_DATA"
) -> Path:
    """Return the first of these relative paths that exists; raises BadInput with the remedy if none does."""
    found = locate(data_dir, *names)
    if found is None:
        raise BadInput(f"{names[0]} is in none of the data folders; {remedy}")
    return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a BadInput of one line that names it."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise BadInput(f"{path} is truncated or damaged ({type(error).__name__}: {why}); get the file again") from error


def decoded(
    path: Path, decode: Callable[[Path], tuple[np.ndarray, np.ndarray]], beside: Sequence[Path] = ()
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return images, labels and the release of a file, decoding it once and keeping the arrays under its hash.

    `beside` are further files that decoding reads, whose hashes count too: one that is not known makes the release unknown.
    Raises BadInput naming the file if it is truncated or damaged.
    """
    digests, releases = [], []
    for file in (path, *beside):
        digest, md5 = hashes(file)
        digests.append(digest)
        releases.append(_release(digest, md5))
    release = next((name for name in releases if name != releases[0]), releases[0])
    key = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    kept = [cache_dir() / "decoded" / f"{key[:32]}-{what}.npy" for what in ("x", "y")]
    with suppress(Exception):  # not kept yet, or damaged in any way: decoded again
        x, y = (np.load(file, allow_pickle=False) for file in kept)
        if len(x) == len(y) and x.dtype == np.uint8 and y.dtype == np.int64:
            return x, y, release
    with reading(path):
        x, y = decode(path)
    if len(x) != len(y) or not len(x):
        raise BadInput(f"{path} holds {len(x)} images and {len(y)} labels; get the file again")
    with suppress(OSError):  # a cache that cannot be written only costs the time to decode again
        for file, array in zip(kept, (x, y), strict=True):
            _keep(file, array)
    return x, y, release


def _keep(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    try:
        with new.open("wb") as out:
            np.save(out, array, allow_pickle=False)
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
