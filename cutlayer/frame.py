"""The bytes of a message (docs/wire.md)."""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import BadInput
from .message import REPLIES, Message, family


class Coded(NamedTuple):
    """A role on its way: the tensors that are sent, and whether a codec made them."""

    role: str
    coded: bool
    parts: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)


@dataclass(frozen=True)
class Packed:
    """A message ready to be sent; `owned` says that nobody else holds its tensors."""

    message: Message
    roles: tuple[Coded, ...]
    owned: bool = False
    incarnation: int = 0

    @cached_property
    def header(self) -> bytes:
        return _header(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the frame, == len(dumps(self)), without building it."""
        return len(self.header) + sum(_padded(_nbytes(part), 8) for role in self.roles for part in role.parts)

    def payload(self) -> dict[str, int]:
        """Return the bytes of tensors and codec side data by role family."""
        sums: dict[str, int] = {}
        for role in self.roles:
            sums[family(role.role)] = sums.get(family(role.role), 0) + role.nbytes
        return sums


# The frame. Every field has a fixed width, so that a message's size does not depend on its values.
MAGIC, VERSION = b"CUTL", 1
FIXED = struct.Struct("<4sHBBIIQIHHI")  # magic, version, reply, open, header bytes, client, step, incarnation, counts, checksum
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
CODE_OF = {dtype: code for code, dtype in enumerate(DTYPES)}
MAX_ROLES, MAX_RANK, MAX_NAME, MAX_BYTES = 10_000, 8, 512, 1 << 32
MAX_NUMBERS, MAX_PARTS, MAX_HEADER = 1024, 32_768, 8 << 20  # of a frame; parts are those of all roles together
CONTIGUOUS, CHANNELS_LAST = 0, 1


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def lies_channels_last(tensor: Tensor) -> bool:
    """Return whether a tensor lies channels-last, and not as usual too."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _layout(tensor: Tensor) -> int:
    return CHANNELS_LAST if lies_channels_last(tensor) else CONTIGUOUS


def _can_be_sent(name: str) -> bool:
    """Return whether a name has printable ASCII characters alone: names are shown, and written to files."""
    return name.isascii() and name.isprintable()


def _name(name: str) -> bytes:
    if not _can_be_sent(name) or len(name) > MAX_NAME:
        raise BadInput(
            f"{name[:80]!r} cannot be a name in a message; use at most {MAX_NAME} ASCII letters for modules and parameters"
        )
    data = name.encode()
    return struct.pack("<H", len(data)) + data


def _header(packed: Packed) -> bytes:
    m = packed.message
    body = [_name(m.kind)]
    body += [_name(name) + struct.pack("<d", value) for name, value in m.numbers.items()]
    for role, coded, parts in packed.roles:
        body.append(_name(role) + struct.pack("<BB", coded, len(parts)))
        for part in parts:
            if part.dtype not in CODE_OF or part.dim() > MAX_RANK:
                raise BadInput(
                    f"{role!r}: a tensor of {part.dtype} with {part.dim()} axes cannot be sent; at most {MAX_RANK} axes"
                )
            sizes = struct.pack(f"<{part.dim()}Q", *part.shape)
            body.append(struct.pack("<BBB", CODE_OF[part.dtype], _layout(part), part.dim()) + sizes)
    rest = b"".join(body)
    size = _padded(FIXED.size + len(rest), 64)
    num_parts = sum(len(role.parts) for role in packed.roles)
    if num_parts > MAX_PARTS or not _is_bounded(size, len(m.numbers), len(packed.roles)):
        raise BadInput(
            f"a message of kind {m.kind!r} has {len(m.numbers)} numbers and {len(packed.roles)} tensors in {num_parts} parts; at most "
            f"{MAX_NUMBERS}, {MAX_ROLES} and {MAX_PARTS} are sent, in a header of {MAX_HEADER >> 20} MiB"
        )
    fixed = FIXED.pack(
        MAGIC, VERSION, REPLIES.index(m.reply), m.open, size, m.client, m.step, packed.incarnation,
        len(m.numbers), len(packed.roles), 0,
    )  # fmt: skip
    return (fixed + rest).ljust(size, b"\0")


def _is_bounded(size: int, num_numbers: int, num_roles: int) -> bool:
    return size <= MAX_HEADER and num_numbers <= MAX_NUMBERS and num_roles <= MAX_ROLES


def flat(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes (n,) uint8 in the order in which they are sent, without a copy where they lie so on a CPU."""
    if lies_channels_last(tensor):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.contiguous().cpu().reshape(-1).view(torch.uint8)


def pieces(packed: Packed) -> Iterator[bytes | memoryview]:
    """Yield the frame without its checksum, in order and uncopied: for a medium that lets no byte be damaged."""
    yield packed.header
    for role in packed.roles:
        for part in role.parts:
            raw = flat(part)
            yield memoryview(raw.numpy())  # type: ignore[arg-type]
            yield bytes(_padded(len(raw), 8) - len(raw))


def dumps(packed: Packed) -> bytes:
    """Return the frame: fixed-width header padded to 64 bytes, then the raw tensors, each padded to 8 bytes."""
    data = bytearray(b"".join(pieces(packed)))
    struct.pack_into("<I", data, FIXED.size - 4, zlib.crc32(data))
    return bytes(data)


class _Reader:
    """Reads fields off a header and refuses to go past its end."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at

    def take(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise BadInput("frame refused: its header ends early; the sender speaks another version or the bytes are damaged")
        values = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return values

    def name(self) -> str:
        (size,) = self.take("<H")
        if size > MAX_NAME or self.at + size > len(self.data):
            raise BadInput(f"frame refused: a name of {size} bytes (at most {MAX_NAME})")
        raw = bytes(self.data[self.at : self.at + size])
        self.at += size
        name = raw.decode("latin-1")
        if not _can_be_sent(name):
            raise BadInput("frame refused: a name that is not of printable ASCII characters")
        return name


def _shapes(reader: _Reader, num_roles: int) -> Iterator[tuple[str, bool, list[tuple[torch.dtype, int, tuple[int, ...]]]]]:
    left = MAX_PARTS
    for _ in range(num_roles):
        role = reader.name()
        coded, num_parts = reader.take("<BB")
        left -= num_parts
        if left < 0:
            raise BadInput(f"frame refused: its tensors have more than {MAX_PARTS} parts")
        parts = []
        for _ in range(num_parts):
            code, layout, rank = reader.take("<BBB")
            if code >= len(DTYPES) or layout > CHANNELS_LAST or rank > MAX_RANK or (layout and rank != 4):
                raise BadInput(f"frame refused: role {role!r} has dtype {code}, layout {layout}, rank {rank}")
            shape = reader.take(f"<{rank}Q")
            if any(size > MAX_BYTES for size in shape) or math.prod(max(1, size) for size in shape) > MAX_BYTES:
                raise BadInput(f"frame refused: role {role!r} has shape {shape}")
            parts.append((DTYPES[code], layout, shape))
        yield role, bool(coded), parts


class Outline(NamedTuple):
    """What a header says of the frame it begins: the message, its tensors' dtypes, layouts and shapes, and their bytes."""

    header: bytes  # without its checksum
    message: Message
    incarnation: int
    roles: list[tuple[str, bool, list[tuple[torch.dtype, int, tuple[int, ...]]]]]
    lengths: list[int]
    checksum: int

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(_padded(length, 8) for length in self.lengths)

    def packed(self, raws: Sequence[Tensor], trusted: bool = False) -> Packed:
        """Return the message, given the bytes (n,) uint8 of every tensor.

        Raises BadInput if `dumps` writes another header for it; that of a `trusted` sender is not written again to see.
        """
        left = iter(raws)
        roles = tuple(
            Coded(role, coded, tuple(_tensor(next(left), *part) for part in parts)) for role, coded, parts in self.roles
        )
        packed = Packed(self.message, roles, owned=True, incarnation=self.incarnation)
        if not trusted and (packed.header != self.header or len({role.role for role in roles}) < len(roles)):
            raise BadInput("frame refused: its header is not how it is written; the sender speaks another version")
        return packed


def outline(data: bytes | bytearray | memoryview) -> Outline:
    """Return what the header at the beginning of some bytes says; every count, rank and size is checked, nothing is allocated.

    Raises BadInput on a header that `dumps` would not have written.
    """
    view = memoryview(data)
    if len(view) < FIXED.size:
        raise BadInput(f"frame refused: {len(view)} bytes are less than a header")
    magic, version, reply, is_open, size, client, step, incarnation, num_numbers, num_roles, checksum = FIXED.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise BadInput(f"frame refused: magic {magic!r} version {version}; this is {MAGIC!r} version {VERSION}")
    if reply >= len(REPLIES) or is_open > 1 or not FIXED.size <= size <= len(view):
        raise BadInput("frame refused: its header is out of bounds")
    if not _is_bounded(size, num_numbers, num_roles):
        raise BadInput(
            f"frame refused: a header of {size} bytes for {num_numbers} numbers and {num_roles} tensors; at most {MAX_HEADER}, "
            f"{MAX_NUMBERS} and {MAX_ROLES}"
        )
    reader = _Reader(view[:size], FIXED.size)
    kind = reader.name()
    numbers = {}
    for _ in range(num_numbers):
        name = reader.name()
        numbers[name] = float(reader.take("<d")[0])
    described = list(_shapes(reader, num_roles))
    if reader.at > size or _padded(reader.at, 64) != size:
        raise BadInput("frame refused: its header has another length than it says")
    lengths = [math.prod(shape) * dtype.itemsize for _, _, parts in described for dtype, _, shape in parts]
    header = bytes(view[: FIXED.size - 4]) + b"\0\0\0\0" + bytes(view[FIXED.size : size])
    message = Message(kind, {}, numbers, client, step, REPLIES[reply], bool(is_open))
    found = Outline(header, message, incarnation, described, lengths, checksum)
    if found.nbytes > MAX_BYTES:
        raise BadInput(f"frame refused: it describes {found.nbytes} bytes; at most {MAX_BYTES} are sent")
    return found


def loads(data: bytes | bytearray | memoryview, checked: bool = True) -> Packed:
    """Return the message of a frame; every count, rank and size is checked before anything is allocated.

    A writable buffer is taken over: the tensors lie in it. Without `checked` the frame has no checksum, because it came by a medium
    that lets no byte be damaged. Raises BadInput on anything that `dumps` would not have written.
    """
    view, found = memoryview(data), outline(data)
    if found.nbytes != len(view):
        raise BadInput(f"frame refused: it describes {found.nbytes} bytes and has {len(view)}")
    at = len(found.header)
    if found.checksum != (zlib.crc32(view[at:], zlib.crc32(found.header)) if checked else 0):
        raise BadInput("frame refused: its checksum does not match; the bytes were damaged on the way")
    raws = []
    for length in found.lengths:
        raw, rest = view[at : at + length], view[at + length : at + _padded(length, 8)]
        if any(rest):
            raise BadInput("frame refused: bytes after a tensor are not zero")
        owned = bytearray(raw) if view.readonly else raw
        raws.append(torch.frombuffer(owned, dtype=torch.uint8) if length else torch.empty(0, dtype=torch.uint8))
        at += len(raw) + len(rest)
    return found.packed(raws)


def _tensor(raw: Tensor, dtype: torch.dtype, layout: int, shape: tuple[int, ...]) -> Tensor:
    if layout == CHANNELS_LAST:
        n, c, h, w = shape
        return _tensor(raw, dtype, CONTIGUOUS, (n, h, w, c)).permute(0, 3, 1, 2)
    return raw.view(dtype).reshape(shape) if raw.numel() else torch.empty(shape, dtype=dtype)
