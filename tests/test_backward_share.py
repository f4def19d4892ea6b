"""A decoupled client may go backward through a share of each batch: the server learns from all of it, and the client pays less."""

import copy

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn
from torch.nn import functional as F

import cutlayer as cl
from cutlayer.auxiliary import forward_share
from cutlayer.cut import Smashed
from cutlayer.errors import BadInput
from cutlayer.models.heads import build_head
from cutlayer.parties import build
from cutlayer.recipes.recipe import make
from cutlayer.streams import drawing
from cutlayer.task import Batch, Task

FIELDS = {
    "scheme": "dsl", "auxiliary": "pool_linear", "rounds": 1, "batch_size": 8, "num_threads": 1, "lr": 0.05, "momentum": 0.0,
    "weight_decay": 0.0,
}  # fmt: skip


def run(parts=None, n=32, **fields):
    clients = cl.partition.contiguous(small_data(n=n).train, num_clients=1)
    return cl.run(parts or cl.cut(small_model(), "stage1.block1"), clients, **{**FIELDS, **fields})


@pytest.mark.parametrize("share", [0.25, 0.5, 0.6])
def test_the_client_learns_from_the_first_samples_and_the_server_from_all(share):
    torch.manual_seed(0)
    bottom, top = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    data = small_data(n=8)
    result = cl.run(cl.Parts(bottom, top), cl.partition.contiguous(data.train, num_clients=1), backward_share=share, **FIELDS)
    mine, theirs = copy.deepcopy(bottom), copy.deepcopy(top)
    with drawing(0, "auxiliary"):
        head = build_head("pool_linear", Task(num_classes=4, input_shape=(1, 6, 6), cut_shape=(4, 6, 6)))
    order = torch.randperm(8, generator=cl.streams.stream(0, "order", 0, 0))
    batch = data.train.batch(order, cl.streams.stream(0, "augment", 0, 0, 0))
    n = {0.25: 2, 0.5: 4, 0.6: 5}[share]
    z = mine(batch.x)
    F.cross_entropy(theirs(z.detach()), batch.y).backward()
    F.cross_entropy(head(z[:n]), batch.y[:n]).backward()
    for module in (mine, theirs):
        for parameter in module.parameters():
            parameter.data -= 0.05 * parameter.grad
    for name, module in (("bottom", mine), ("top", theirs)):
        for key, tensor in module.state_dict().items():
            assert torch.allclose(result.modules[name].state_dict()[key], tensor, atol=1e-6), (name, key)


def test_all_of_it_is_decoupled_split_learning_and_bytes_are_the_same_for_any_share():
    whole, all_of_it, half = run(), run(backward_share=1.0), run(backward_share=0.5)
    assert all(equal(whole.modules[name], all_of_it.modules[name]) for name in whole.modules)
    assert whole.summary["bytes"] == half.summary["bytes"]
    assert not equal(whole.modules["bottom"], half.modules["bottom"])


def test_the_client_keeps_and_computes_less():
    whole, half = (run(backward_share=share, speeds=1e6, server_speed=1e12) for share in (1.0, 0.5))
    cost = whole.summary["macs_per_sample"]
    seconds = [result.summary["simulated"]["seconds"] * 1e6 / 32 for result in (whole, half)]
    assert seconds[0] == pytest.approx(3 * (cost["bottom"] + cost["auxiliary"]), rel=1e-3)
    assert seconds[1] == pytest.approx(2 * cost["bottom"] + 1.5 * cost["auxiliary"], rel=1e-3)
    kept = [result.summary["kept_for_backward_bytes"]["client"] for result in (whole, half)]
    assert kept[1] == pytest.approx(kept[0] / 2, rel=0.1)  # what a normalisation keeps of each channel stays
    live = [result.summary["peak_memory_bytes"]["client"] for result in (whole, half)]
    assert live[1] < 0.75 * live[0]


@pytest.mark.parametrize(
    ("n", "share", "own"), [(100, 0.55, 55), (100, 0.07, 7), (2, 0.5, 2), (3, 0.1, 3), (4, 0.1, 2), (5, 0.7, 5), (1, 0.5, 1)]
)
def test_no_sample_goes_through_batch_norm_alone(n, share, own):
    class Whole:
        task = Task()

        def forward(self, batch, **how):
            return Smashed(batch.x, {"mask": batch.y}, {"importance": lambda: batch.y})

    x = torch.arange(n)
    z, sent, mine = forward_share(Whole(), Batch(x, x), share)
    assert len(z.main) == len(mine.y) == own
    assert torch.equal(sent.main, x)
    assert torch.equal(sent.others["mask"], x)
    assert torch.equal(sent.local["importance"](), x)


def test_masks_of_dropout_are_of_each_pass_its_own():
    parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Dropout(0.5)), nn.Linear(36, 4))
    data, recipe = small_data(n=8), make(FIELDS)
    parties = build(
        recipe, parts, cl.partition.contiguous(data.train, num_clients=1), data.train, Task(cut_shape=(36,)), lambda: None
    )
    _, sent, _ = forward_share(parties.clients[0], data.train.batch(torch.zeros(8, dtype=torch.long), None), 0.5)
    own, others = (rows == 0 for rows in sent.main.split(4))  # of one and the same sample
    assert own.any()
    assert not torch.equal(own, others)


@pytest.mark.parametrize("share", [0.0, -1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(BadInput, match=r"above 0 and at most 1"):
        make({**FIELDS, "backward_share": share})


def test_the_servers_gradient_needs_whole_batches():
    with pytest.raises(BadInput, match="lambda_weight = 0"):
        make({**FIELDS, "backward_share": 0.5, "lambda_weight": 0.5})


def test_graphs_are_refused_because_rows_are_nodes():
    batch = small_data(n=8).train.batch(torch.arange(8), None)
    with pytest.raises(BadInput, match="nodes, not samples"):
        forward_share(None, batch._replace(y=batch.y[:6]), 0.5)
