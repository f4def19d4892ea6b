import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cutlayer.codecs import CODECS, build
from cutlayer.errors import BadInput
from cutlayer.frame import DTYPES, FIXED
from cutlayer.wire import Coded, Message, Packed, dumps, loads, pack, unpack

shapes = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def messages(draw):
    tensors = {}
    for i in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from(DTYPES))
        raw = torch.randint(0, 2, tuple(draw(shapes)), generator=torch.Generator().manual_seed(i))
        tensors[draw(st.sampled_from(["smashed", "labels", "context/mask", f"weights/bottom.{i}"]))] = raw.to(dtype)
    numbers = draw(st.dictionaries(st.sampled_from(["done", "version", "record/loss"]), st.floats()))
    reply = draw(st.sampled_from(["wait", "later", "none"]))
    return Message(
        "smashed", tensors, numbers, draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**63)), reply, draw(st.booleans())
    )


@given(messages())
@settings(max_examples=100, deadline=None)
def test_law4_a_frame_is_as_long_as_it_says_and_comes_back_whole(message):
    packed = pack(message, {})
    frame = dumps(packed)
    assert packed.nbytes == len(frame)
    back = unpack(loads(frame), {})
    assert (back.kind, back.client, back.step, back.reply, back.open) == (
        message.kind, message.client, message.step, message.reply, message.open,
    )  # fmt: skip
    assert {k: repr(v) for k, v in back.numbers.items()} == {k: repr(v) for k, v in message.numbers.items()}
    assert back.tensors.keys() == message.tensors.keys()
    for role, tensor in message.tensors.items():
        assert back.tensors[role].dtype == tensor.dtype
        assert back.tensors[role].shape == tensor.shape
        assert torch.equal(back.tensors[role].double(), tensor.double())
    assert dumps(loads(frame)) == frame


def test_a_frames_size_does_not_depend_on_values():
    sizes = {
        len(dumps(pack(Message("sync", {}, {"loss": loss}, 0, step), {})))
        for loss in (0.0, 1 / 3, 1e300)
        for step in (0, 10**9)
    }
    assert len(sizes) == 1


def test_channels_last_crosses_the_wire_with_its_layout():
    z = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    back = loads(dumps(pack(Message("smashed", {"smashed": z}), {}))).roles[0].parts[0]
    assert torch.equal(back, z)
    assert back.stride() == z.stride()


def test_T1_7_nothing_unpacked_aliases_the_sender():
    z = torch.randn(3, 4, requires_grad=True)
    for names in ({}, {"smashed": "identity"}, {"smashed": "float16"}):
        ends = build(names)
        got = unpack(pack(Message("smashed", {"smashed": z}), ends), ends).tensors["smashed"]
        assert got.data_ptr() != z.data_ptr()
        assert got.is_leaf
        assert not got.requires_grad


FRAME = dumps(pack(Message("smashed", {"smashed": torch.randn(2, 3), "labels": torch.tensor([1, 2])}, {"loss": 1.0}, 3, 7), {}))


@given(st.integers(0, len(FRAME) - 1), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_a_damaged_frame_is_refused(at, value):
    damaged = bytearray(FRAME)
    if damaged[at] == value:
        return
    damaged[at] = value
    with pytest.raises(BadInput, match="frame refused"):
        loads(damaged)


@given(st.integers(0, len(FRAME) - 1))
def test_a_truncated_frame_is_refused(length):
    with pytest.raises(BadInput, match="frame refused"):
        loads(FRAME[:length])


# of 240 values in 5 samples of 48, 16 positions by 3 channels; indices below 48 take 6 bits
PAYLOAD = {
    "identity": 960, "float16": 480, "bfloat16": 480, "float8": 244, "float8_e4m3": 244, "float8_e5m2": 244, "minifloat": 248,
    "uniform8": 248, "uniform4": 128, "uniform2": 68, "top_k": 5 * 5 * 4 + 19, "random_top_k": 5 * 5 * 4 + 19,
    "low_rank": (80 + 3) * 3 * 4, "gaussian_noise": 960,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in CODECS if name not in ("batch_merge", "feedback")])
def test_every_codec_measures_what_it_sends(name):
    z = torch.randn(5, 3, 4, 4)
    ends = build({"smashed": name})
    packed = pack(Message("smashed", {"smashed": z, "labels": torch.arange(5)}), ends)
    payload = packed.payload()
    assert payload["labels"] == 40
    assert payload["smashed"] == PAYLOAD[name]
    assert packed.nbytes == len(dumps(packed))
    there = build({"smashed": name})
    once = unpack(loads(dumps(packed)), there).tensors["smashed"]
    assert torch.equal(once, unpack(packed, there).tensors["smashed"])


@pytest.mark.parametrize("name", ["gewicht_ä", "w" * 600])
def test_a_name_that_could_not_be_read_back_is_not_written(name):
    with pytest.raises(BadInput, match="cannot be a name in a message"):
        dumps(pack(Message("sync", {f"weights/{name}": torch.zeros(1)}), {}))


def test_a_frame_that_is_not_how_it_is_written_is_refused():
    """What the checksum covers may still be said in two ways; only one is taken."""

    def signed(frame):
        frame[FIXED.size - 4 : FIXED.size] = bytes(4)
        frame[FIXED.size - 4 : FIXED.size] = zlib.crc32(frame).to_bytes(4, "little")
        return bytes(frame)

    assert signed(bytearray(FRAME)) == FRAME
    at = FRAME.index(b"smashed", FRAME.index(b"smashed") + 1) + len("smashed")  # coded
    header = len(pack(Message("smashed", {"smashed": torch.randn(2, 3)}), {}).header)
    one = bytearray(dumps(pack(Message("smashed", {"smashed": torch.zeros(1, dtype=torch.uint8)}), {})))
    for frame, where in ((bytearray(FRAME), at), (bytearray(FRAME), len(loads(FRAME).header) - 1), (one, header + 3)):
        frame[where] = 2
        with pytest.raises(BadInput, match="frame refused"):
            loads(signed(frame))


@pytest.mark.parametrize("name", [name for name in CODECS if name not in ("batch_merge", "feedback", "identity")])
@pytest.mark.parametrize(
    "parts", [(), (torch.zeros(3),), (torch.zeros(2, 2, 0, dtype=torch.uint8), torch.ones(3), torch.ones(2))]
)
def test_parts_that_no_codec_made_are_refused_or_decoded_but_never_break_it(name, parts):
    ends = build({"smashed": name})
    packed = Packed(Message("smashed", {}), (Coded("smashed", True, parts),))
    try:
        assert isinstance(unpack(loads(dumps(packed)), ends).tensors["smashed"], torch.Tensor)
    except BadInput:
        return


def with_counts(num_numbers, num_roles, body):
    """Return a frame whose header has these counts before these bytes."""
    size = -(-(FIXED.size + len(body)) // 64) * 64
    fixed = FIXED.pack(b"CUTL", 1, 0, 0, size, 0, 0, 0, num_numbers, num_roles, 0)
    return (fixed + body).ljust(size, b"\0")


def test_a_header_of_many_parts_is_refused_before_they_are_built():
    role = b"\x01\x00a" + b"\x01\xff" + 255 * (b"\x00\x00\x01" + bytes(8))
    many = with_counts(0, 10_000, b"\x04\x00sync" + 2_500 * role)  # 637,500 empty parts
    tracemalloc.start()
    with pytest.raises(BadInput, match="more than 32768 parts"):
        loads(many, checked=False)
    with pytest.raises(BadInput, match="a header of 28"):
        loads(with_counts(0, 10_000, b"\x04\x00sync" + 10_000 * role), checked=False)
    with pytest.raises(BadInput, match="for 1025 numbers"):
        loads(with_counts(1025, 0, b"\x04\x00sync"), checked=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_a_message_that_could_not_be_read_back_is_not_written():
    for numbers, roles in (({str(i): 0.0 for i in range(1025)}, ()), ({}, 129 * (Coded("a", True, 255 * (torch.zeros(0),)),))):
        with pytest.raises(BadInput, match="at most 1024, 10000 and 32768 are sent"):
            dumps(Packed(Message("sync", {}, numbers), tuple(roles)))
