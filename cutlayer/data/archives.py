"""Reading compressed files with a limit on what they inflate to."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Protocol

from ..errors import BadInput

DEFLATE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods inflate without a bound


def too_large(what: object, limit: int) -> BadInput:
    """Return the error for a file that inflates to more than `limit` bytes."""
    return BadInput(f"{what} inflates to more than {limit:,} bytes, the most that this data set may have; get the file again")


def read_gzip(path: Path, limit: int) -> bytes:
    """Return what a gzip file inflates to; raises BadInput if that is more than `limit` bytes.

    The size at the end of the file is not used: it is wrong in a truncated file and where several members follow each other.
    """
    with gzip.open(path) as inflated:
        return _Bounded(inflated, path, limit).read()


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Return a member of a zip file; raises BadInput if it inflates to more than `limit` bytes, or needs another method than deflate."""
    info, what = archive.getinfo(name), f"{archive.filename}: {name}"
    if info.compress_type not in DEFLATE:
        raise BadInput(f"{what} is compressed with method {info.compress_type}; compress the archive again with deflate")
    if info.file_size > limit:
        raise too_large(what, limit)
    with archive.open(info) as inflated:
        return inflated.read(info.file_size)  # a file that declares too little fails its checksum


def read_tar_gzip(path: Path, suffix: str, limit: int) -> dict[str, bytes]:
    """Return the files of a gzipped tar archive whose names end in `suffix`; raises BadInput if it inflates to more than `limit` bytes."""
    found: dict[str, bytes] = {}
    with gzip.open(path) as inflated, tarfile.open(fileobj=_Bounded(inflated, path, limit), mode="r|") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(suffix):
                if member.size > limit:
                    raise too_large(f"{path}: {member.name}", limit)
                content = archive.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    return found


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Bounded(io.RawIOBase):
    """A stream that raises BadInput once more than `limit` bytes were read from it."""

    def __init__(self, stream: _Stream, what: object, limit: int) -> None:
        self.stream, self.what, self.limit, self.left = stream, what, limit, limit

    def read(self, size: int = -1) -> bytes:
        found = self.stream.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(found)
        if self.left < 0:
            raise too_large(self.what, self.limit)
        return found
