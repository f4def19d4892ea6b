"""T8.*: synthetic gradients: with an oracle it is backpropagation, it starts at rest, and a linear guess can be exact."""

import copy

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.auxiliary import squared_error
from cutlayer.cut import Smashed
from cutlayer.errors import BadInput
from cutlayer.methods.synthetic_gradient import SyntheticGradient
from cutlayer.models.regressors import build_regressor
from cutlayer.streams import stream
from cutlayer.task import Batch

QUICK = {"rounds": 3, "batch_size": 4, "num_threads": 1, "lr": 0.05, "method": "synthetic_gradient"}


def run(num_clients=2, n=24, tail=None, **fields):
    clients = cl.partition.contiguous(small_data(n=n).train, num_clients=num_clients)
    return cl.run(cl.cut(small_model(), "stage1.block1", tail), clients, **{**QUICK, **fields})


class Oracle(SyntheticGradient):
    def guess(self, client, z, batch):
        return self.pending[-1][3]


@pytest.mark.parametrize("tail", [None, "hidden"])
def test_T8_1_with_an_oracle_it_is_backpropagation(tail):
    fields = {"weight_decay": 1e-3, "clip": 0.5}
    csl = run(tail=tail, method="backprop", **fields)
    oracle = run(tail=tail, method="test_synthetic_gradient:Oracle", delay=0, **fields)
    assert all(equal(csl.modules[name], oracle.modules[name]) for name in csl.modules)


@pytest.mark.parametrize("regressor", ["linear", "deep"])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_T8_2_the_client_rests_until_its_regressor_has_learned(regressor, delay):
    before = cl.cut(small_model(), "stage1.block1").bottom
    for steps, moved in ((delay + 1, False), (delay + 2, True)):
        result = run(1, n=4 * steps, rounds=1, regressor=regressor, delay=delay)
        parameters = zip(before.parameters(), result.modules["bottom"].parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in parameters) == moved


def test_T8_3_a_linear_guess_learns_the_gradient_of_a_linear_top_under_squared_loss():
    torch.manual_seed(0)
    task = cl.Task(num_classes=3, cut_shape=(5,))
    top = nn.Linear(5, 3)
    regressor = build_regressor("linear", task, conditioned=True, width=8)
    blind = build_regressor("linear", task, conditioned=False, width=8)
    errors = {}
    for name, module in (("labels", regressor), ("blind", blind)):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        for step in range(2000):
            draw = stream(0, "z", step=step)
            z = torch.randn(32, 5, generator=draw).requires_grad_()
            y = torch.randint(0, 3, (32,), generator=draw)
            wanted = nn.functional.one_hot(y, 3).float()
            (true,) = torch.autograd.grad((top(z) - wanted).square().sum(), z)
            error = squared_error(module, Smashed(z.detach()), Batch(true, y), task)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.998
        errors[name] = float(error.detach())
    assert errors["labels"] < 1e-8
    assert errors["blind"] > 1e-2


@pytest.mark.parametrize("every", [1, 3])
def test_gradients_come_back_as_often_as_it_is_said(every):
    result = run(true_every=every, n=32)
    steps = 3 * 4
    z = 4 * 4 * 6 * 6 * 4
    assert result.summary["bytes"]["down"]["cut_grad"]["payload"] == 2 * -(-steps // every) * z
    assert result.summary["bytes"]["up"]["smashed"]["payload"] == 2 * steps * z


def test_what_is_late_is_the_gradient_of_its_own_batch():
    seen = {}

    class Spy(SyntheticGradient):
        def lesson(self, client, t):
            number, z, y, _ = self.pending[0]
            spied, client.loss = (
                client.loss,
                lambda name, at, batch: seen.update({number: (t, z, y, batch)}) or spied(name, at, batch),
            )
            loss = yield from super().lesson(client, t)
            client.loss = spied
            return loss

    from cutlayer.methods import METHODS, Entry

    METHODS["spy"] = Entry(Spy, "")
    try:
        result = run(1, n=24, delay=2, method="spy", rounds=2, lr=0.0, normalised=False)
    finally:
        del METHODS["spy"]
    assert [(number, t) for number, (t, *_) in seen.items()] == [(i, i + 2) for i in range(10)]
    for _, z, y, taught in seen.values():  # of a top that stands still
        leaf = z.clone().requires_grad_()
        torch.nn.functional.cross_entropy(result.modules["top"](leaf), y).backward()
        assert torch.allclose(leaf.grad, taught.x, atol=1e-7)
        assert torch.equal(taught.y, y)
    assert "regressor_loss" in result.records[-1]


def test_a_smaller_batch_has_larger_gradients_and_the_regressor_does_not_mind():
    """Targets are divided by their own size, so the loss of a regressor that says nothing is about one."""
    for batch_size in (4, 12):
        first = run(1, n=24, rounds=1, batch_size=batch_size, regressor_lr=0.0, lr=0.0).records[0]["regressor_loss"]
        assert 0.3 < first < 3


def test_it_learns_with_one_true_gradient_in_four():
    result = run(1, n=96, rounds=12, batch_size=8, true_every=4, regressor_lr=0.05, lr=0.02)
    assert result.records[-1]["train_loss"] < 0.5 * result.records[0]["train_loss"]
    still = copy.deepcopy(cl.cut(small_model(), "stage1.block1").bottom)
    assert not equal(still, result.modules["bottom"])


def test_labels_that_are_no_classes_are_refused():
    module = build_regressor("linear", cl.Task(num_classes=3, cut_shape=(5,)), conditioned=True, width=8)
    with pytest.raises(BadInput, match="conditioned = false"):
        module(torch.zeros(2, 5), torch.zeros(2, 3))
    with pytest.raises(BadInput, match="unknown regressor"):
        build_regressor("lineer", cl.Task(cut_shape=(5,)), conditioned=True, width=8)
