"""Codecs where they work: in messages, in training, in evaluation, and where they merge samples."""

import copy

import pytest
import torch
from conftest import equal, small_data, small_model

import cutlayer as cl
from cutlayer.building import batches
from cutlayer.codecs import build, reducer
from cutlayer.cut import Smashed
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.reducing import spread
from cutlayer.rounds import as_evaluated
from cutlayer.wire import Message, pack, unpack


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
    codec = build({"smashed": "uniform2"})["smashed"]
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
    once, again = (through(Smashed(z, {"skip": 2 * z, "mask": z > 0})) for _ in range(2))
    assert torch.equal(once.main, again.main)
    assert torch.equal(once.others["skip"], again.others["skip"])
    assert not torch.equal(once.main, z)
    assert not torch.equal(once.others["skip"], 2 * z)
    assert torch.equal(once.others["mask"], z > 0)


def test_two_factors_are_evaluated_about_as_well_as_training_has_them():
    """Training's basis has followed the tensors before; evaluation has none before it."""
    draw = torch.Generator().manual_seed(0)
    channels = torch.randn(16, 16, generator=draw) * 0.5 ** torch.arange(16)
    rows = [torch.randn(8, 16, 3, 3, generator=draw).permute(0, 2, 3, 1) @ channels for _ in range(20)]
    tensors = [each.permute(0, 3, 1, 2) for each in rows]
    trained, fresh = (build({"smashed": "low_rank@3"})["smashed"] for _ in range(2))
    for tensor in tensors[:-1]:
        trained.encode(tensor)
    fresh.training = False
    last = tensors[-1]
    errors = [float((codec.decode(codec.encode(last)) - last).norm()) for codec in (trained, fresh)]
    assert errors[1] < 1.05 * errors[0]


@pytest.mark.parametrize(
    ("activations", "gradient"),
    [("low_rank@2+top_k@0.5", "top_k@0.5"), ("top_k@0.5", "low_rank@2+top_k@0.5"), ("low_rank@2+top_k", "top_k")],
)
def test_places_in_a_factor_are_no_places_of_the_tensor(activations, gradient):
    ends = [build({"smashed": activations, "cut_grad": gradient}) for _ in range(2)]
    z, g = (torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    unpack(pack(Message("smashed", {"smashed": z}), ends[0]), ends[1])
    came = unpack(pack(Message("cut_grad", {"cut_grad": g}), ends[1]), ends[0]).tensors["cut_grad"]
    assert came.shape == g.shape
    assert float(torch.nn.functional.cosine_similarity(came.flatten(), g.flatten(), dim=0)) > 0.3


def test_merged_samples_cross_in_the_precision_of_the_run():
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=1)
    how = {"rounds": 1, "batch_size": 8, "num_threads": 1, "precision": "bfloat16", "diagnose_every": 0}
    parts = cl.cut(small_model(), "stage1.block1", "hidden")
    plain, half = (
        cl.run(parts, clients, codec=codec, **how).summary["bytes"] for codec in ({}, {"smashed": "batch_merge@0.5"})
    )
    for direction, role in (("up", "smashed"), ("down", "cut_grad"), ("down", "features"), ("up", "feature_grad")):
        assert half[direction][role]["payload"] == plain[direction][role]["payload"] / 2


def test_a_tail_computes_what_is_left_of_merged_samples():
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=1)
    how = {"rounds": 1, "batch_size": 8, "num_threads": 1, "speeds": 1e6, "server_speed": 1e12}
    parts = cl.cut(small_model(), "stage1.block1", "hidden")
    seconds = {
        ratio: cl.run(parts, clients, codec={"smashed": f"batch_merge@{ratio}"}, **how).summary["simulated"]["seconds"]
        for ratio in (1.0, 0.5)
    }
    macs = cl.run(parts, clients, **how).summary["macs_per_sample"]["tail"]
    assert seconds[1.0] - seconds[0.5] == pytest.approx(3 * 12 * macs / 1e6, rel=1e-3)
