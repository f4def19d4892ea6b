"""T9.*: clients without a backward pass: the estimate, the way back, equal masks, eight bytes, a top that holds still."""

import copy

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.building import training
from cutlayer.client import Client
from cutlayer.methods.zeroth_order import ZerothOrder, ZerothOrderOptions
from cutlayer.recipes.recipe import make
from cutlayer.shifts import Shift
from cutlayer.steps import train_step
from cutlayer.task import Batch

pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = {"rounds": 2, "batch_size": 4, "num_threads": 1, "lr": 0.01, "method": "zeroth_order"}


def run(num_clients=2, n=24, parts=None, **fields):
    clients = cl.partition.contiguous(small_data(n=n).train, num_clients=num_clients)
    return cl.run(parts or cl.cut(small_model(), "stage1.block1"), clients, **{**QUICK, **fields})


def squared(output, y):
    return 0.5 * (output - y).square().mean()


class NoHead(nn.Module):
    def forward(self, z):
        return z


def no_head(task, depth, width):
    return NoHead()


def quadratic(**options):
    """A client in float64 whose own loss is quadratic in its weights."""
    torch.manual_seed(0)
    bottom = nn.Linear(9, 5).double()
    batch = Batch(torch.randn(16, 9).double(), torch.randn(16, 5).double())
    how = training(make({"lr": 1.0, "momentum": 0.0}))
    client = Client(0, {"bottom": bottom}, how, cl.Task(loss=squared, cut_shape=(5,)))
    method = ZerothOrder(ZerothOrderOptions(probe="local", auxiliary="test_zeroth_order:no_head", **options), client)
    return client, method, batch


def true_gradient(client, batch):
    twin = copy.deepcopy(client.modules["bottom"])
    squared(twin(batch.x), batch.y).backward()
    return torch.cat([p.grad.flatten() for p in twin.parameters()])


def flat(client):
    return torch.cat([p.detach().flatten() for p in client.trained()])


def test_T9_1_for_a_quadratic_loss_the_estimate_is_u_u_gradient():
    client, method, batch = quadratic(epsilon=1e-2)
    gradient, before = true_gradient(client, batch), flat(client)
    u = torch.cat([part.flatten() for _, part in Shift(client, 0, 1e-2).direction()])
    list(method.step(client, batch))
    assert torch.allclose(before - flat(client), u * (u @ gradient), atol=1e-11, rtol=0)


def test_T9_2_the_mean_over_many_directions_is_the_gradient():
    client, method, batch = quadratic(queries=5000, center=True)
    gradient, before = true_gradient(client, batch), flat(client)
    list(method.step(client, batch))
    assert torch.nn.functional.cosine_similarity(before - flat(client), gradient, dim=0) > 0.95


@pytest.mark.parametrize("exact", [False, True])
def test_T9_3_the_way_back_ends_where_it_began(exact):
    client = Client(0, {"bottom": small_model()}, training(make({})), cl.Task())
    before = flat(client)
    shift = Shift(client, 0, 1e-3, exact)
    for sign in (1, -1, 0):
        shift.to(sign)
        assert torch.equal(flat(client), before) == (exact and sign == 0) or not exact
    ulp = torch.finfo(torch.float32).eps * before.abs().clamp_min(1e-3)
    assert bool(((flat(client) - before).abs() <= (0 if exact else 4) * ulp).all())
    mine, other = (torch.cat([u.flatten() for _, u in Shift(client, q, 1.0).direction()]) for q in (0, 1))
    assert abs(float(torch.nn.functional.cosine_similarity(mine, other, dim=0))) < 0.3


class Watching:
    """What the server saw of probes, and its weights when it did."""

    def __init__(self, monkeypatch):
        from cutlayer import probes

        self.tensors, self.states, self.kinds = [], [], []
        probe = probes.Probes.probe

        def spy(part, server, messages):
            self.tensors.append(messages[0].tensors["smashed"].clone())
            self.states.append(copy.deepcopy(server.top_of(messages[0].client).state_dict()))
            return probe(part, server, messages)

        monkeypatch.setattr(probes.Probes, "probe", spy)


def dropping():
    torch.manual_seed(0)
    bottom = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    return cl.Parts(bottom, nn.Sequential(nn.Linear(144, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)))


@pytest.mark.parametrize("probe", ["server", "local"])
def test_T9_4_both_losses_see_the_same_masks_and_statistics_move_once(probe, monkeypatch):
    seen = Watching(monkeypatch)
    result = run(1, n=8, rounds=1, parts=dropping(), probe=probe, epsilon=1e-30, auxiliary="linear")
    for plus, minus in zip(seen.tensors[::2], seen.tensors[1::2], strict=True):
        assert torch.equal(plus, minus)
        assert bool((plus == 0).float().mean() > 0.4)
    assert len(seen.tensors) == (4 if probe == "server" else 0)
    for name, module in (("bottom", result.modules["bottom"][1]), ("top", result.modules["top"][1])):
        assert int(module.num_batches_tracked) == 2, name


@pytest.mark.parametrize(("queries", "center"), [(1, False), (3, False), (2, True)])
def test_T9_5_a_pair_of_losses_is_eight_bytes_and_activations_go_up_twice_for_each(queries, center):
    result = run(queries=queries, center=center)
    steps, z = 2 * 2 * 3, 4 * 4 * 6 * 6 * 4
    table = result.summary["bytes"]
    assert table["down"]["loss"]["payload"] == steps * 8 * queries
    assert table["up"]["smashed"]["payload"] == steps * (2 * queries + center) * z
    assert "cut_grad" not in table["down"]


@pytest.mark.parametrize("schedule", ["relay", "parallel", "asynchronous"])
@pytest.mark.parametrize("center", [False, True])
def test_T9_6_the_top_holds_still_between_the_losses_of_a_batch(schedule, center, monkeypatch):
    seen = Watching(monkeypatch)
    order = {"server_order": "arrival"} if schedule == "parallel" else {}
    run(queries=2, center=center, schedule=schedule, **order)
    groups = [seen.states[i : i + 4] for i in range(0, len(seen.states), 4)]
    assert len(groups) >= 2 * 2 * 3  # under asynchronous a turn may be taken that nobody waits for
    assert all(equal(group[0], state) for group in groups for state in group)
    assert not equal(groups[0][0], groups[1][0])


def test_the_server_learns_at_the_first_shift_or_at_the_centre(monkeypatch):
    from cutlayer import probes

    learned = []

    def spy(server, messages):
        learned.append(messages[0].tensors["smashed"].clone())
        return train_step(server, messages)

    monkeypatch.setattr(probes, "train_step", spy)
    parts = cl.cut(small_model(), "stage1.block1")
    seen = Watching(monkeypatch)
    run(1, n=4, rounds=1, parts=parts, queries=2)
    assert torch.equal(learned[0], seen.tensors[0])
    run(1, n=4, rounds=1, parts=parts, queries=2, center=True)
    x = small_data(n=4).train.batch(torch.arange(4), None).x
    assert torch.allclose(learned[1].sort(0).values, parts.bottom.train()(x).sort(0).values, atol=1e-5)


def test_heron_is_CSE_FSL_without_a_backward_pass_at_the_client():
    fields = {"scheme": "heron_sfl", "auxiliary": "linear", "queries": 4, "lr": 0.003, "rounds": 8}
    clients = cl.partition.contiguous(small_data(n=48).train, num_clients=2)
    result = cl.run(cl.cut(small_model(), "stage1.block1"), clients, **{**fields, "batch_size": 8, "num_threads": 1})
    assert result.summary["bytes"]["down"].keys() <= {"weights", "go"}
    assert result.summary["held_byte_seconds"]["client"] == 0  # nothing is kept for a backward pass
    assert result.records[-1]["probed_loss"] < result.records[0]["probed_loss"]
