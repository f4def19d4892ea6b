"""T2.*: with labels at home the network is the same, and no message tells them."""

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.cut import Parts
from cutlayer.errors import BadInput
from cutlayer.wire import loads

QUICK = {"rounds": 2, "batch_size": 4, "num_threads": 1, "lr": 0.05}


def state(result):
    return {name: t for part in result.parts[:3] if part is not None for name, t in part.state_dict().items()}


def messages(folder):
    return [(path.name.split("-")[1], loads(path.read_bytes())) for path in sorted((folder / "tap").iterdir())]


# carry: or the tail's momentum would be reset with the bottom's, where the server keeps it
@pytest.mark.parametrize("scheme", [{"hand_over": "carry"}, {"scheme": "splitfed_v1"}], ids=str)
def test_T2_1_u_shaped_is_vanilla_is_uncut(scheme):
    data, model = small_data(n=23), small_model()
    clients = cl.partition.iid(data.train, num_clients=2)
    plain = cl.run(cl.cut(model, "stem"), clients, **scheme, **QUICK)
    for tail in ("stage1.block1", "pool", "hidden"):
        u = cl.run(cl.cut(model, "stem", tail), clients, **scheme, **QUICK)
        assert equal(state(plain), state(u)), tail


def test_T2_2_no_message_has_labels_or_logits(tmp_path):
    data, parts = small_data(n=23), cl.cut(small_model(), "stem", "hidden")
    result = cl.run(parts, cl.partition.iid(data.train, num_clients=1), scheme="u_shaped", out=tmp_path, tap=True, **QUICK)
    roles = {role.role for _, packed in messages(tmp_path) for role in packed.roles}
    assert {role for role in roles if not role.startswith(("evaluation/", "weights/"))} == {
        "smashed", "features", "feature_grad", "cut_grad",
    }  # fmt: skip
    widths = {
        part.shape[1:]
        for _, packed in messages(tmp_path)
        for role in packed.roles
        for part in role.parts
        if role.role == "features"
    }
    assert widths == {(8,)}  # and not the 4 logits
    assert "labels" not in result.summary["bytes"]["up"]


def test_T2_3_an_empty_tail_has_the_loss_alone_at_home():
    data, model = small_data(n=23), small_model()
    whole = cl.cut(model, "stem")
    clients = cl.partition.iid(data.train, num_clients=1)
    plain = cl.run(whole, clients, **QUICK)
    u = cl.run(Parts(whole.bottom, whole.top, nn.Identity()), clients, **QUICK)
    assert equal(state(plain), state(u))
    assert u.summary["bytes"]["down"]["features"]["payload"] == 2 * 23 * 4 * 4


def test_T2_4_bytes_are_twice_both_cuts():
    data, parts = small_data(n=23), cl.cut(small_model(), "stem", "hidden")
    result = cl.run(parts, cl.partition.iid(data.train, num_clients=2), scheme="u_shaped", **QUICK)
    table = result.summary["bytes"]
    z, a, samples = 4 * 6 * 6 * 4, 8 * 4, 2 * 23
    assert table["up"]["smashed"]["payload"] == table["down"]["cut_grad"]["payload"] == samples * z
    assert table["down"]["features"]["payload"] == table["up"]["feature_grad"]["payload"] == samples * a


def test_T2_5_the_gradient_at_the_second_cut_is_the_uncut_models(tmp_path):
    data, model = small_data(n=8), small_model()
    clients = cl.partition.contiguous(data.train, num_clients=1)
    cl.run(cl.cut(model, "stem", "hidden"), clients, out=tmp_path, tap=True, **{**QUICK, "rounds": 1, "batch_size": 8})
    (sent,) = [p.roles[0].parts[0] for way, p in messages(tmp_path) if p.message.kind == "feature_grad"]
    (features,) = [p.roles[0].parts[0] for way, p in messages(tmp_path) if p.message.kind == "features"]
    order = torch.cdist(features, model[:4](clients.source.batch(torch.arange(8), None).x)).argmin(1)
    batch = clients.source.batch(order, None)
    middle = model[:4](batch.x)
    middle.retain_grad()
    nn.functional.cross_entropy(model[4](middle), batch.y).backward()
    assert torch.allclose(sent, middle.grad, atol=1e-7)


def test_the_last_block_can_be_named_so_and_something_must_be_left_for_the_server():
    model = cl.models.resnet20(10)
    assert [name for name, _ in cl.cut(model, "shallow", "last").tail.named_parameters()] == [
        "classifier.weight",
        "classifier.bias",
    ]
    with pytest.raises(BadInput, match="leaves nothing for the server"):
        cl.cut(model, "pool", "last")
