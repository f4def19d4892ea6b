import pytest
import torch
from hypothesis import given, settings, strategies as st

from cutlayer.codecs import CODECS, Float8, build
from cutlayer.errors import BadInput, RunFailed

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BOUND = {E4M3: 1 / 17, E5M2: 1 / 9}


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@given(st.integers(0, 1000), st.floats(-30, 38))
@settings(max_examples=60, deadline=None)
def test_T10_3_float8_error_bounds(dtype, seed, magnitude):
    t = torch.randn(64, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3) * 10.0**magnitude
    t[::7] = 0
    t = t.clamp(-3e38, 3e38)
    codec = Float8(dtype)
    back = codec.decode(codec.encode(t))
    assert torch.isfinite(back).all()
    assert (back[::7] == 0).all()
    scale = codec.encode(t)[1]
    normal = (t.double() * scale.double()).abs() >= torch.finfo(dtype).smallest_normal
    error = ((back.double() - t.double()) / t.double())[normal].abs()
    assert (error <= BOUND[dtype] * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", [(4, 3), (1,), (2, 3, 4, 4), (0, 3)])
def test_T10_2_encoding_twice_changes_nothing(name, shape):
    codec = CODECS[name].build("smashed")
    t = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    once = codec.decode(codec.encode(t))
    assert torch.equal(codec.decode(codec.encode(once)), once)
    assert once.shape == t.shape


@pytest.mark.parametrize("name", CODECS)
def test_zeros_stay_zeros_and_layout_stays(name):
    codec = CODECS[name].build("cut_grad")
    z = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    back = codec.decode(codec.encode(z))
    assert torch.equal(back, z)
    assert back.stride() == z.stride()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_decoding_table_is_the_conversion(dtype):
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    mine = Float8(dtype).decode((codes, torch.ones(1)))
    assert torch.equal(mine.nan_to_num(7.0), codes.view(dtype).float().nan_to_num(7.0))


@pytest.mark.parametrize("name", [name for name in CODECS if name != "identity"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_encoded(name, bad):
    with pytest.raises(RunFailed, match=r"NaN or infinity; lower lr"):
        CODECS[name].build("smashed").encode(torch.tensor([1.0, bad]))


def test_float8_means_precision_up_and_range_down():
    ends = build({"smashed": "float8", "cut_grad": "float8"})
    assert (ends["smashed"].dtype, ends["cut_grad"].dtype) == (E4M3, E5M2)
    with pytest.raises(BadInput, match=r"'float9'.*Did you mean 'float8'"):
        build({"smashed": "float9"})
