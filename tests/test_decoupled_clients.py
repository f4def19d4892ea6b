"""T4.* between several clients: in a relay, averaged with one top, averaged with copies."""

import pytest
import torch
from conftest import equal, small_data, small_model

import cutlayer as cl
from cutlayer.training import Training

QUICK = {"rounds": 2, "batch_size": 4, "num_threads": 1, "lr": 0.05, "auxiliary": "mlp", "auxiliary_width": 8}
KINDS = {
    "relay": {"scheme": "dsl_seq"},
    "shared": {"scheme": "dsl"},
    "averaged": {"scheme": "dsl_fed"},
    "copies": {"scheme": "locsplitfed"},
    "asynchronous": {"method": "auxiliary_loss", "schedule": "asynchronous"},
}
CONVENTIONAL = {"relay": "vanilla", "averaged": "splitfed_v2", "copies": "splitfed_v1"}
EVERY = pytest.mark.parametrize("kind", KINDS)


def run(kind, parts=None, **fields):
    clients = cl.partition.dirichlet(small_data(n=60).train, num_clients=3, alpha=1.0, min_size=8)
    return cl.run(parts or cl.cut(small_model(), "stage1.block1"), clients, **{**QUICK, **KINDS[kind], **fields})


def plain(scheme, **fields):
    clients = cl.partition.dirichlet(small_data(n=60).train, num_clients=3, alpha=1.0, min_size=8)
    how = {k: v for k, v in QUICK.items() if not k.startswith("auxiliary")}
    return cl.run(cl.cut(small_model(), "stage1.block1"), clients, **{**how, "scheme": scheme, **fields})


@EVERY
def test_T4_1_only_weights_come_down(kind):
    down = run(kind).summary["bytes"]["down"]
    assert {role for role, cell in down.items() if cell["payload"]} <= {"weights"}
    assert "cut_grad" not in down


@EVERY
def test_T4_2_clients_do_not_depend_on_the_server(kind):
    parts, other = cl.cut(small_model(), "stage1.block1"), cl.cut(small_model(seed=9), "stage1.block1")
    first, second = run(kind, parts), run(kind, parts._replace(top=other.top))
    assert all(equal(first.modules[name], second.modules[name]) for name in ("bottom", "auxiliary"))
    assert not equal(first.modules["top"], second.modules["top"])


@pytest.mark.parametrize("kind", CONVENTIONAL)
def test_T4_3_without_the_auxiliary_loss_and_with_the_servers_gradient_it_is_conventional(kind):
    order = {"server_order": "client_major"} if kind == "averaged" else {}
    mixed = run(kind, aux_weight=0.0, lambda_weight=1.0, **order)
    conventional = plain(CONVENTIONAL[kind])
    assert all(equal(mixed.modules[name], conventional.modules[name]) for name in ("bottom", "top"))


@pytest.mark.parametrize("kind", ["relay", "averaged", "copies"])
@pytest.mark.parametrize("every", [1, 2])
def test_T4_6_bytes_at_the_cut_are_half_and_a_period_adds_its_share(kind, every):
    fields = {"lambda_weight": 0.5, "lambda_every": every}
    decoupled, mixed, conventional = run(kind), run(kind, **fields), plain(CONVENTIONAL[kind])
    up, down = (conventional.summary["bytes"][way][role]["payload"] for way, role in (("up", "smashed"), ("down", "cut_grad")))
    assert decoupled.summary["bytes"]["up"]["smashed"]["payload"] == up == down
    back = mixed.summary["bytes"]["down"]["cut_grad"]["payload"]
    assert back == down if every == 1 else 0.4 * down < back < 0.7 * down


@EVERY
def test_T4_7_one_optimizer_step_per_side_and_batch(kind, monkeypatch):
    taken = []
    step = Training.step

    def counting(self, optimizer, anchor=(), times=1):
        taken.extend([id(optimizer)] * times)
        step(self, optimizer, anchor, times)

    monkeypatch.setattr(Training, "step", counting)
    result = run(kind)
    messages = result.summary["bytes"]["up"]["labels"]["payload"] // 8 / 4
    assert len(taken) % 2 == 0
    assert len(taken) // 2 >= messages  # batches of four, the last of a client smaller


@EVERY
def test_T4_10_a_server_that_lags_behind_learns_the_same(kind):
    serial, late = run(kind), run(kind, overlap=50)
    assert all(equal(serial.modules[name], late.modules[name]) for name in serial.modules)


def test_T4_4_the_averaged_clients_gradient_is_that_of_the_weighted_sum():
    """One plain step of each client without BatchNorm: the average moves along the mean of their weighted sums."""
    from cutlayer.auxiliary import auxiliary_loss
    from cutlayer.cut import Smashed

    torch.manual_seed(0)
    nn = torch.nn
    parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh()), nn.Linear(8, 4))
    data = small_data(n=24)
    clients = cl.partition.contiguous(data.train, num_clients=3)
    fields = {
        "scheme": "locsplitfed",
        "auxiliary": "linear",
        "lambda_weight": 0.5,
        "aux_weight": 2.0,
        "rounds": 1,
        "batch_size": 8,
    }
    fields |= {"num_threads": 1, "momentum": 0.0}
    before, after = (cl.run(parts, clients, lr=lr, **fields).modules for lr in (0.0, 0.1))
    total = 0
    for share in clients.shares:
        batch = data.train.batch(share, None)
        z = Smashed(before["bottom"](batch.x))
        local = auxiliary_loss(before["auxiliary"], z, batch, cl.Task())
        total = total + (2.0 * local + 0.5 * cl.Task().loss(before["top"](z.main), batch.y)) / 3
    grads = torch.autograd.grad(total, list(before["bottom"].parameters()))
    for old, new, grad in zip(before["bottom"].parameters(), after["bottom"].parameters(), grads, strict=True):
        assert torch.allclose(new, old - 0.1 * grad, atol=1e-6)
