import copy
import math

import pytest
import torch
from conftest import equal, small_data, small_model
from hypothesis import given, settings, strategies as st

import cutlayer as cl
from cutlayer.building import batches
from cutlayer.codecs import CODECS, Float8, build, reducer
from cutlayer.codecs.base import packed, unpacked
from cutlayer.cut import Smashed
from cutlayer.errors import BadInput, RunFailed
from cutlayer.recipes.recipe import make
from cutlayer.reducing import spread
from cutlayer.rounds import as_evaluated
from cutlayer.wire import Message, pack, unpack

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


def messages_with(codec, n=4):
    """A client's end and the server's, an upward and a downward message of two steps in flight."""
    client, server = (
        build({"smashed": codec, "cut_grad": codec}, 0, 0, "client"),
        build({"smashed": codec, "cut_grad": codec}, 0, 0, "server"),
    )
    draw = torch.Generator().manual_seed(0)
    zs = [torch.randn(n, 6, 3, 3, generator=draw) for _ in range(2)]
    ups = [pack(Message("smashed", {"smashed": z}, step=t, reply="later"), client) for t, z in enumerate(zs)]
    seen = [unpack(up, server).tensors["smashed"] for up in ups]
    grads = [torch.randn(n, 6, 3, 3, generator=draw) for _ in range(2)]
    downs = [pack(Message("cut_grad", {"cut_grad": g}, step=t), server) for t, g in enumerate(grads)]
    back = [unpack(down, client).tensors["cut_grad"] for down in downs]
    return seen, grads, back, downs


@pytest.mark.parametrize("name", ["top_k@0.2", "random_top_k@0.2:0.5", "top_k@0.2+float16"])
def test_a_gradient_comes_back_at_the_places_of_its_activations_and_does_not_say_where(name):
    seen, grads, back, downs = messages_with(name)
    for z, wanted, got, down in zip(seen, grads, back, downs, strict=True):
        assert torch.allclose(got, wanted * (z != 0), atol=1e-2)
        assert torch.equal(got != 0, z != 0)
        assert down.payload()["cut_grad"] == 4 * 11 * (2 if "float16" in name else 4)


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


CHAINS = [
    "float8",
    "minifloat",
    "uniform4",
    "top_k@0.3",
    "random_top_k@0.3:0.2+float8",
    "low_rank@2",
    "gaussian_noise@0.1:5.0+uniform8",
]


@pytest.mark.parametrize("name", CHAINS)
def test_T10_6_the_clients_gradient_is_that_of_the_uncut_graph_with_the_codec_straight_through(name):
    """Both ends of a twin pair, with the same draws, stand where the codec does in the uncut graph."""

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return unpack(pack(Message("smashed", {"smashed": z}), client), server).tensors["smashed"]

        @staticmethod
        def backward(ctx, grad):
            return unpack(pack(Message("cut_grad", {"cut_grad": grad}), server), client).tensors["cut_grad"]

    parts, data = cl.cut(small_model(), "stage1.block1"), small_data(n=8)
    clients = cl.partition.contiguous(data.train, num_clients=1)
    names = {"smashed": name, "cut_grad": name}
    how = {"rounds": 1, "batch_size": 8, "num_threads": 1, "momentum": 0.0, "lr": 1.0}
    result = cl.run(parts, clients, codec=names, **how)
    client, server = (build(names, 0, 0, end) for end in ("client", "server"))
    bottom, top = copy.deepcopy(parts.bottom), copy.deepcopy(parts.top)
    (batch,) = batches(make(how), clients.source, clients.shares[0], 0)(0, 0)
    torch.nn.functional.cross_entropy(top(Through.apply(bottom(batch.x))), batch.y).backward()
    for part, key in ((bottom, "bottom"), (top, "top")):
        for before, after in zip(part.parameters(), result.modules[key].parameters(), strict=True):
            assert torch.allclose(before - before.grad, after, atol=1e-6, rtol=0)


def test_T10_8_evaluation_is_without_the_codec_unless_it_is_asked_for():
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=1)
    how = {"rounds": 2, "batch_size": 8, "num_threads": 1, "lr": 0.05, "codec": {"smashed": "uniform2"}}
    plain, coded = (cl.run(cl.cut(small_model(), "stem"), clients, compress_eval=on, **how) for on in (False, True))
    assert all(equal(plain.modules[name], coded.modules[name]) for name in plain.modules)
    modules = {name: module.eval() for name, module in plain.modules.items()}
    batch = clients.source.held_out.batch(torch.arange(12), None)
    codec = codec_of("uniform2")
    with torch.no_grad():
        z = modules["bottom"](batch.x)
        output = modules["top"](codec.decode(codec.encode(z)))
        assert plain.records[-1]["accuracy"] == float((modules["top"](z).argmax(1) == batch.y).double().mean())
    assert coded.records[-1]["accuracy"] == float((output.argmax(1) == batch.y).double().mean())


def test_merged_samples_are_means_and_their_gradient_is_shared():
    merge = reducer({"smashed": "batch_merge@0.5+float8"})
    z = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    z[3:] += 9
    y = torch.tensor([0, 0, 1, 2, 2, 2, 2, 1])
    tensors, soft, back = merge.reduce(Smashed(z), y, 3)
    assert tensors["smashed"].shape == (4, 4, 2, 2)
    assert soft.shape == (4, 3)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    share = back(torch.eye(4)[:, :, None, None].expand(4, 4, 2, 2))[:, :, 0, 0]  # row k's gradient is 1 in channel k
    members = share > 0
    assert bool((members.sum(1) == 1).all())
    assert not bool((members[:3].any(0) & members[3:].any(0)).any())
    for k in range(4):
        assert torch.allclose(tensors["smashed"][k], z[members[:, k]].mean(0), atol=1e-6)
    graph = z.clone().requires_grad_()
    ((share.T @ graph.flatten(1)).view(4, 4, 2, 2) ** 2).sum().backward()
    answer = Message("cut_grad", {"cut_grad": 2 * tensors["smashed"]})
    assert torch.allclose(spread(answer, back).tensors["cut_grad"], graph.grad, atol=1e-5)


def test_tokens_that_a_cluster_pays_most_are_kept_and_paddings_count_for_nothing():
    draw = torch.Generator().manual_seed(0)
    z, importance = torch.randn(6, 5, 3, generator=draw), torch.rand(6, 5, generator=draw)
    mask = torch.arange(5)[None] < torch.tensor([5, 5, 2, 3, 5, 4])[:, None]
    importance = importance * mask
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    merge = reducer({"smashed": "batch_merge@0.5:0.4"})
    tensors, soft, back = merge.reduce(Smashed(z, {"mask": mask}, {"importance": lambda: importance}), y, 2)
    sent, there = tensors["smashed"], tensors["context/mask"]
    assert sent.shape == (3, 2, 3)
    assert there.shape == (3, 2)
    marks = torch.eye(3)[:, None, :].expand(3, 2, 3)  # row k's gradient is 1 in feature k
    shares = back(marks)  # (samples, tokens, clusters)
    for k in range(3):
        mine = shares[:, :, k].sum(1) > 0
        centre = importance[mine].mean(0)
        kept = centre.topk(2).indices.sort().values
        assert set(shares[mine][:, :, k].sum(0).nonzero().flatten().tolist()) <= set(kept.tolist())
        for i, token in enumerate(kept.tolist()):
            seen = mine & mask[:, token]
            wanted = z[seen, token].mean(0) if bool(seen.any()) else torch.zeros(3)
            assert torch.allclose(sent[k, i], wanted, atol=1e-6)
            assert bool(there[k, i]) == bool(seen.any())
    assert torch.allclose(soft.sum(1), torch.ones(3))
    with pytest.raises(BadInput, match="does not say which matter"):
        merge.reduce(Smashed(z, {"mask": mask}), y, 2)


@pytest.mark.parametrize("tail", [None, "hidden"])
def test_merging_every_sample_with_itself_is_no_merging(tail):
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=1)
    how = {"rounds": 2, "batch_size": 8, "num_threads": 1, "lr": 0.05}
    parts = cl.cut(small_model(), "stage1.block1", tail)
    plain, merged, half = (
        cl.run(parts, clients, codec=codec, **how) for codec in ({}, {"smashed": "batch_merge@1.0"}, {"smashed": "batch_merge"})
    )
    for name in plain.modules:
        mine, theirs = plain.modules[name].state_dict(), merged.modules[name].state_dict()
        assert all(torch.allclose(mine[key].double(), theirs[key].double(), atol=1e-4) for key in mine)
    up, less = (run.summary["bytes"]["up"]["smashed"]["payload"] for run in (merged, half))
    assert less == up / 2
    assert ("labels" in half.summary["bytes"]["up"]) == (tail is None)


@pytest.mark.parametrize("first", ["float8", "uniform8", "uniform2@nearest", "minifloat", "feedback+float8"])
@pytest.mark.parametrize("second", ["float16", "top_k", "float8"])
def test_what_left_bytes_is_coded_no_further(first, second):
    with pytest.raises(BadInput, match="leave bytes, not values"):
        build({"weights": f"{first}+{second}"})


def test_a_gradient_shares_the_places_of_activations_that_were_noised_before():
    ends = [build({"smashed": "gaussian_noise@0.1:100+top_k@0.1", "cut_grad": "top_k"}) for _ in range(2)]
    z, g = (torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    sent = unpack(pack(Message("smashed", {"smashed": z}), ends[0]), ends[1]).tensors["smashed"]
    packed = pack(Message("cut_grad", {"cut_grad": g}), ends[1])
    came = unpack(packed, ends[0]).tensors["cut_grad"]
    assert ((came != 0) <= (sent != 0)).all()
    assert packed.payload() == {"cut_grad": 4 * 11 * 4}
    with pytest.raises(BadInput, match=r"places of its activations, 'top_k@0.1'; write top_k"):
        build({"smashed": "top_k@0.1", "cut_grad": "top_k@0.5"})


@pytest.mark.parametrize("codec", ["uniform2", "gaussian_noise@0.5:1", "random_top_k@0.1", "top_k@0.1+uniform2", "low_rank@2"])
def test_evaluation_codes_a_tensor_the_same_way_every_time(codec):
    through = as_evaluated(make({"codec": {"smashed": codec}, "compress_eval": True}))
    z = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(through(z), through(z))
    assert not torch.equal(through(z), z)


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
