import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cutlayer.codecs import CODECS, Float8, build
from cutlayer.codecs.base import packed, unpacked
from cutlayer.errors import BadInput, RunFailed
from cutlayer.recipes.recipe import make
from cutlayer.wire import Message

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


# what gives the same values when it is given its own; the others draw, or rotate
EXACT = [name for name in CODECS if name not in ("random_top_k", "low_rank", "gaussian_noise", "batch_merge", "feedback")]
OF_TENSORS = [name for name in CODECS if name not in ("batch_merge", "feedback")]


def codec_of(name, role="smashed"):
    return build({role: name})[role]


@pytest.mark.parametrize("name", [*EXACT, "minifloat@2:1", "minifloat@5:2", "uniform4@nearest", "top_k@0.3+float16"])
@pytest.mark.parametrize("shape", [(4, 3), (1,), (2, 3, 4, 4), (0, 3)])
def test_T10_2_encoding_twice_changes_nothing(name, shape):
    codec = codec_of(name)
    t = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    once = codec.decode(codec.encode(t))
    assert torch.equal(codec.decode(codec.encode(once)), once)
    assert once.shape == t.shape


@pytest.mark.parametrize("name", OF_TENSORS)
def test_zeros_stay_zeros_and_layout_stays(name):
    codec = codec_of(name, "cut_grad")
    z = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    back = codec.decode(codec.encode(z))
    assert name == "gaussian_noise" or torch.equal(back, z)
    assert back.stride() == z.stride()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_the_decoding_table_is_the_conversion(dtype):
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    mine = Float8(dtype).decode((codes, torch.ones(1)))
    assert torch.equal(mine.nan_to_num(7.0), codes.view(dtype).float().nan_to_num(7.0))


@pytest.mark.parametrize("name", [name for name in OF_TENSORS if name != "identity"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_encoded(name, bad):
    with pytest.raises(RunFailed, match=r"NaN or infinity; lower lr"):
        codec_of(name).encode(torch.tensor([1.0, bad]))


def test_float8_means_precision_up_and_range_down():
    ends = build({"smashed": "float8", "cut_grad": "float8"})
    assert (ends["smashed"].dtype, ends["cut_grad"].dtype) == (E4M3, E5M2)
    with pytest.raises(BadInput, match=r"'float9'.*Did you mean 'float8'"):
        build({"smashed": "float9"})


@pytest.mark.parametrize("name", ["uniform8", "uniform4", "uniform2"])
def test_T10_4_stochastic_rounding_has_the_mean_of_what_it_rounds_and_follows_the_seed(name):
    codec, t = codec_of(name), torch.linspace(-1, 2, 37)
    draws = torch.stack([codec.decode(codec.encode(t)) for _ in range(10_000)]).double()
    error = (draws.mean(0) - t).abs()
    step = 3 / (2 ** int(name.removeprefix("uniform")) - 1)
    assert bool((error <= 4 * draws.std(0) / 100 + 1e-6).all())
    assert float(draws.var(0).max()) <= step**2 / 4 * 1.05
    again, other = build({"smashed": name})["smashed"], build({"smashed": name}, seed=1)["smashed"]
    first = codec_of(name).encode(t)[1]
    assert torch.equal(first, again.encode(t)[1])
    assert not torch.equal(first, other.encode(t)[1])
    again.load({k: v.clone() for k, v in codec.state().items()})
    assert torch.equal(again.encode(t)[1], codec.encode(t)[1])  # goes on where the other stands


def test_nearest_rounding_is_at_most_half_a_step_off():
    codec, t = codec_of("uniform4@nearest"), torch.randn(1000, generator=torch.Generator().manual_seed(0))
    step = float(t.max() - t.min()) / 15
    assert float((codec.decode(codec.encode(t)) - t).abs().max()) <= step / 2 * (1 + 1e-5)


@pytest.mark.parametrize("name", ["top_k@1.0", "random_top_k@1.0"])
def test_T10_5_all_of_them_is_identity(name):
    t = torch.randn(3, 4, 5, 5)
    assert torch.equal(codec_of(name).decode(codec_of(name).encode(t)), t)


@pytest.mark.parametrize(
    ("shape", "ratio"), [((6, 8, 5, 5), 0.02), ((6, 8, 5, 5), 0.3), ((4, 1), 0.5), ((2, 7), 0.1), ((3, 2), 0.9)]
)
def test_T10_5_the_payload_is_the_formula(shape, ratio):
    d = math.prod(shape[1:])
    k = max(1, math.ceil(ratio * d))
    index = min(k * max(1, math.ceil(math.log2(d))) if d > 1 else k, d)
    parts = codec_of(f"top_k@{ratio}").encode(torch.randn(shape))
    assert sum(p.nbytes for p in parts) == shape[0] * k * 4 + math.ceil(shape[0] * index / 8)
    back = codec_of("top_k").decode(parts)
    assert bool(((back != 0).flatten(1).sum(1) == k).all())
    assert bool((back.flatten(1).abs().sort(1).values[:, -k:] > 0).all())


def test_random_places_are_drawn_in_training_and_the_largest_are_more_often():
    codec, t = codec_of("random_top_k@0.1:0.2"), torch.arange(1.0, 41).view(1, 40)
    chosen = torch.stack([codec.decode(codec.encode(t))[0] != 0 for _ in range(500)]).double().mean(0)
    assert bool((chosen[-4:] > 0.6).all())
    assert 0 < float(chosen[:-4].mean()) < 0.1
    codec.training = False
    assert torch.equal(codec.decode(codec.encode(t))[0].nonzero().flatten(), torch.arange(36, 40))


@given(st.integers(1, 24), st.integers(0, 50), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_bits_come_back_as_they_were_packed(bits, n, seed):
    codes = torch.randint(0, 2**bits, (n,), generator=torch.Generator().manual_seed(seed))
    data = packed(codes, bits)
    assert len(data) == math.ceil(n * bits / 8)
    assert torch.equal(unpacked(data, bits, n), codes)


@pytest.mark.parametrize(("e", "m"), [(2, 1), (3, 4), (4, 3), (5, 2), (2, 5)])
def test_a_minifloat_is_the_nearest_of_all_its_values(e, m):
    t = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-6, 0, 200)
    codec = codec_of(f"minifloat@{e}:{m}")
    parts = codec.encode(t)
    bias = int(parts[2][2])
    values = [
        (man / 2**m * 2.0 ** (1 - bias) if exp == 0 else (1 + man / 2**m) * 2.0 ** (exp - bias))
        for exp in range(2**e)
        for man in range(2**m)
    ]
    grid = torch.tensor([-v for v in values] + values, dtype=torch.float64)
    nearest = (t.double()[:, None] - grid).abs().min(1).values
    assert torch.allclose((codec.decode(parts).double() - t.double()).abs(), nearest, atol=1e-12, rtol=1e-6)
    assert max(values) * 2 > float(t.abs().max()) >= 0.5 * max(values) or float(t.abs().max()) > max(values)


def test_the_best_split_is_found_and_what_is_never_negative_has_no_sign():
    wide = torch.randn(4000, generator=torch.Generator().manual_seed(0)).exp() * 10.0 ** torch.linspace(-4, 4, 4000)
    flat = torch.linspace(0.5, 1.0, 4000)

    def error(name, t):
        codec = codec_of(name)
        return float((codec.decode(codec.encode(t)) - t).square().sum())

    for t in (wide, flat, flat - 0.75):
        assert error("minifloat", t) <= min(error(f"minifloat@{e}:{7 - e}", t) for e in range(2, 6))
    assert error("minifloat", flat) < 0.3 * min(error(f"minifloat@{e}:{7 - e}", flat) for e in range(2, 6))
    assert codec_of("minifloat").encode(flat)[2].tolist()[:2] == [2, 6]


def test_low_rank_of_enough_rank_is_exact_and_its_basis_follows():
    draw = torch.Generator().manual_seed(0)
    low = (torch.randn(2 * 9, 2, generator=draw) @ torch.randn(2, 6, generator=draw)).view(2, 3, 3, 6).permute(0, 3, 1, 2)
    codec = codec_of("low_rank@2")
    assert torch.allclose(codec.decode(codec.encode(low)), low, atol=1e-5)
    full, errors = torch.randn(2, 6, 3, 3, generator=draw), []
    codec = codec_of("low_rank@3")
    for _ in range(20):
        errors.append(float((codec.decode(codec.encode(full)) - full).norm()))
    rows = full.permute(0, 2, 3, 1).reshape(-1, 6)
    best = float(torch.linalg.svdvals(rows)[3:].norm())
    assert errors[0] > errors[-1] >= best * (1 - 1e-5)
    assert errors[-1] < best * 1.02


def test_T10_7_noise_comes_after_clipping_and_before_what_codes_it():
    t = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 10
    still, loud = codec_of("gaussian_noise@0.0:2.0"), codec_of("gaussian_noise@0.5:2.0")
    clipped = still.decode(still.encode(t))
    assert torch.allclose(clipped.norm(dim=1), torch.full((200,), 2.0))
    small = t / 1000
    assert torch.equal(still.decode(still.encode(small)), small)
    noise = loud.decode(loud.encode(t)) - clipped
    assert abs(float(noise.std()) - 1.0) < 0.03
    chained = codec_of("gaussian_noise@0.5:2.0+float8")
    assert chained.encode(t)[0].dtype == torch.uint8
    for wrong in ("float8+gaussian_noise", "top_k+gaussian_noise@0.1:1.0+float8"):
        with pytest.raises(BadInput, match="gaussian_noise before whatever codes its result"):
            build({"smashed": wrong})


def test_parts_that_do_not_belong_together_are_refused_before_their_product_is_made():
    shape = torch.empty((4, 9, 0), dtype=torch.uint8)
    with pytest.raises(BadInput, match=r"factors of 1048576 and 1048576 rows for a tensor of shape \(4, 9\)"):
        codec_of("low_rank@1").decode((shape, torch.zeros(1 << 20, 1), torch.zeros(1 << 20, 1)))
    with pytest.raises(BadInput, match="0 values for 4 samples of 9"):
        codec_of("top_k").decode((shape, torch.zeros(0), torch.zeros(0, dtype=torch.uint8)))


@pytest.mark.parametrize("name", OF_TENSORS)
def test_a_codec_says_what_it_will_decode_to(name):
    for t in (torch.randn(3, 5), torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)):
        codec = codec_of(name)
        parts = codec.encode(t)
        assert codec.says(parts) == codec.decode(parts).shape == t.shape


def test_error_feedback_telescopes():
    """The sum of what is sent and the error that is left is the sum of what was to be sent."""
    codec = codec_of("feedback+top_k@0.2", "weights")
    sent = wanted = torch.zeros(10, 8, dtype=torch.float64)
    for t in range(20):
        tensor = torch.randn(10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        codec.begin(Message("sync", {}), "weights/a")
        sent = sent + codec.decode(codec.encode(tensor))
        wanted = wanted + tensor
        assert torch.allclose(sent + codec.errors["weights/a"], wanted, atol=1e-5)
    assert float(codec.errors["weights/a"].norm()) > 0


@pytest.mark.parametrize(
    ("codec", "why"),
    [
        ({"smashed": "feedback+float8"}, "the error belongs to other samples"),
        ({"weights": "feedback"}, "feedback stands in front of a codec"),
        ({"cut_grad": "batch_merge"}, "give it to smashed"),
        ({"smashed": "top_k@1.5"}, "a share lies above 0"),
        ({"smashed": "top_k@much"}, "ratio = 'much' is no float"),
        ({"smashed": "float8@3"}, "float8 takes nothing behind the @"),
        ({"smashed": "uniform4@up"}, "rounding is stochastic or nearest"),
        ({"smashed": "low_rank@0"}, "at least 1"),
        ({"smashed": "top_k+float9"}, "Did you mean 'float8'"),
        ({"smashed": "float8+batch_merge"}, "comes first"),
    ],
)
def test_a_codec_that_means_nothing_is_refused_in_one_line(codec, why):
    with pytest.raises(BadInput) as error:
        build(codec)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("first", ["float8", "uniform8", "uniform2@nearest", "minifloat", "feedback+float8"])
@pytest.mark.parametrize("second", ["float16", "top_k", "float8"])
def test_what_left_bytes_is_coded_no_further(first, second):
    with pytest.raises(BadInput, match="leave bytes, not values"):
        build({"weights": f"{first}+{second}"})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"codec": "smashed=float8,smashed=float16"}, "a role has two"),
        ({"codec": {"smashed": "gaussian_noise@inf"}}, "both finite"),
        ({"codec": {"smashed": "batch_merge"}, "compress_eval": True}, "nothing codes the smashed data in evaluation"),
    ],
)
def test_codecs_that_would_do_nothing_or_something_else_are_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        make(fields)
