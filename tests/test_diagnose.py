import math

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.diagnose import effective_rank
from cutlayer.errors import BadInput

HOW = {"rounds": 2, "batch_size": 8, "num_threads": 1, "lr": 0.05}


@pytest.mark.parametrize(
    "fields", [{"scheme": "vanilla"}, {"scheme": "dsl", "auxiliary": "pool_linear", "codec": {"smashed": "float8"}}]
)
def test_looking_at_the_cut_changes_neither_weights_nor_traffic(fields):
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.iid(data.train, num_clients=2)
    plain = cl.run(parts, clients, **HOW, **fields)
    watched = cl.run(parts, clients, diagnose_every=1, **HOW, **fields)
    assert all(equal(plain.modules[name], watched.modules[name]) for name in plain.modules)
    assert plain.summary["bytes"]["up"]["smashed"] == watched.summary["bytes"]["up"]["smashed"]
    assert all(r["effective_rank"] >= 1 and r["activation_norm"] > 0 for r in watched.records)
    assert all(("gradient_cosine" in r) == (fields["scheme"] == "dsl") for r in watched.records)
    assert all(-1 <= r.get("gradient_cosine", 0) <= 1 for r in watched.records)
    assert not any("effective_rank" in r for r in plain.records)


@pytest.mark.parametrize("fields", [{"scheme": "dsl_seq"}, {"method": "auxiliary_loss", "schedule": "asynchronous"}])
def test_looking_at_the_cut_takes_no_simulated_time(fields):
    parts = cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=2)
    clock = {"speeds": "1e6,2e6", "server_speed": 1e8}
    plain = cl.run(parts, clients, auxiliary="pool_linear", **HOW, **clock, **fields)
    watched = cl.run(parts, clients, auxiliary="pool_linear", diagnose_every=1, **HOW, **clock, **fields)
    assert plain.summary["simulated"] == watched.summary["simulated"]
    assert all(equal(plain.modules[name], watched.modules[name]) for name in plain.modules)


def test_a_top_that_begins_in_place_can_be_looked_at():
    bottom, top = nn.Sequential(nn.Flatten(), nn.Linear(36, 16)), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 4))
    clients = cl.partition.iid(small_data().train, num_clients=1)
    result = cl.run(cl.Parts(bottom, top), clients, scheme="dsl", auxiliary="linear", diagnose_every=1, **HOW)
    assert all("gradient_cosine" in record for record in result.records)


def test_the_cosine_is_one_where_the_head_is_the_servers_own_top():
    data, model = small_data(), small_model()
    parts = cl.cut(model, "hidden")  # the top is one linear layer of 8 features
    from cutlayer.diagnose import look
    from cutlayer.fit import fitted
    from cutlayer.parties import build
    from cutlayer.recipes.recipe import make

    recipe = make({"scheme": "dsl", "auxiliary": "linear", **HOW})
    clients = cl.partition.iid(data.train, num_clients=1)
    parties = build(recipe, parts, clients, data.train, fitted(cl.Task(), recipe, parts, data.train), lambda: None)
    client, server = parties.clients[0], parties.server
    with torch.no_grad():
        for mine, theirs in zip(client.modules["auxiliary"].parameters(), server.top.parameters(), strict=True):
            mine.copy_(theirs)
    (batch, *_) = parties.batches[0](0, 0)
    assert float(look(parties.methods[0], client, server, batch)["gradient_cosine"]) == pytest.approx(1, abs=1e-6)


def test_effective_rank_of_known_matrices():
    assert float(effective_rank(torch.eye(5))) == pytest.approx(5, rel=1e-5)
    assert float(effective_rank(torch.ones(4, 7))) == pytest.approx(1, rel=1e-4)
    assert math.isnan(float(effective_rank(torch.full((2, 2), float("nan")))))


def test_what_is_looked_at_is_a_function_of_the_seed():
    parts = cl.Parts(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Dropout(0.5)),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 4)),
    )
    clients = cl.partition.iid(small_data().train, num_clients=1)

    def seen():
        result = cl.run(parts, clients, scheme="dsl", auxiliary="linear", diagnose_every=1, **HOW)
        return [(record["activation_norm"], record["gradient_cosine"]) for record in result.records]

    assert seen() == seen()


@pytest.mark.parametrize(
    "fields", [{}, {"diagnose_every": 1}, {"scheme": "heron_sfl"}, {"scheme": "fsl_sage"}, {"reconstruction": "conv2"}]
)
def test_a_head_that_overwrites_the_activations_is_refused(fields, monkeypatch):
    from cutlayer.models import heads

    def overwriting(task, depth, width):
        return nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 4))

    monkeypatch.setitem(heads.HEADS, "mine", heads.Entry(overwriting, "begins in place"))
    clients = cl.partition.iid(small_data().train, num_clients=1)
    with pytest.raises(BadInput, match="overwrites the activations that it is given; begin it without inplace=True"):
        cl.run(cl.cut(small_model(), "stage1.block1"), clients, **{"scheme": "dsl", "auxiliary": "mine", **HOW, **fields})
