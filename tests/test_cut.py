import copy

import pytest
import torch
from conftest import small_model
from torch import nn
from torch.nn import functional as F

import cutlayer as cl
from cutlayer.cut import Smashed, blocks
from cutlayer.errors import BadInput
from cutlayer.fit import overwrites
from cutlayer.task import Batch

X = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def assert_equals_uncut(model, parts, x, **tail):
    """Output, gradients by name and buffers of the parts are the uncut model's, in train and eval mode, at two batch sizes."""
    twin = copy.deepcopy(model)
    modules = [m for m in (parts.bottom, parts.top, parts.tail) if m is not None]
    for training in (True, False):
        for module in [twin, *modules]:
            module.train(training)
        for part in (x, x[:2]):
            torch.manual_seed(5)
            mine = parts.recompose(part)
            torch.manual_seed(5)
            theirs = twin(part)
            assert torch.equal(mine, theirs)
    for module in [twin, *modules]:
        module.train()
        module.zero_grad()
    torch.manual_seed(6)
    twin(x).square().sum().backward()
    torch.manual_seed(6)
    parts.recompose(x).square().sum().backward()
    theirs = {n: p.grad for n, p in twin.named_parameters()}
    mine = {n: p.grad for m in modules for n, p in m.named_parameters()}
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    buffers = {n: b for m in modules for n, b in m.named_buffers()}
    assert all(torch.equal(buffers[n], b) for n, b in twin.named_buffers())


@pytest.mark.parametrize("at", [path for path in blocks(small_model()) if path != "classifier"])
def test_T15_3_every_cut_of_a_sequence_round_trips(at):
    model = small_model()
    assert_equals_uncut(model, cl.cut(model, at), X)


def test_T15_2_the_parts_are_the_uncut_models_own_modules():
    model = small_model()
    parts = cl.cut(model, "stage1.block1", tail="hidden")
    mine = {n: p for part in parts[:3] for n, p in part.state_dict(keep_vars=True).items()}
    theirs = model.state_dict(keep_vars=True)
    assert mine.keys() == theirs.keys()
    assert all(mine[n].data_ptr() == theirs[n].data_ptr() for n in mine)
    assert_equals_uncut(model, parts, X)


def test_T15_3_every_model_is_cut_where_its_aliases_say():
    model = cl.models.resnet20(10)
    for alias, path in {
        "block2": "stage1.block2",
        "block5": "stage2.block2",
        "shallow": "stage1.block2",
        "deep": "stage2.block2",
    }.items():
        assert len(cl.cut(model, alias).bottom.state_dict()) == len(cl.cut(model, path).bottom.state_dict())
    assert cl.cut(model, "deep").later_stages == (64,)


class Skipping(nn.Module):
    """Two tensors are alive at the cut, dropout is a function, and the top begins in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        a = self.first(x)
        b = self.norm(self.second(a))
        b = F.dropout(self.relu(b), 0.3, training=self.training)
        c = self.third(b).add_(a)
        return self.out(self.last(c).mean((2, 3)))


@pytest.mark.parametrize("at", ["first", "second", "norm", "relu", "third"])
def test_a_traced_cut_lets_residual_connections_cross(at):
    model = Skipping()
    parts = cl.cut(model, at)
    z = Smashed.of(parts.bottom(X))
    assert len(z.others) == (0 if at == "first" else 1)
    assert_equals_uncut(model, parts, X)


@pytest.mark.parametrize("at", ["norm", "third"])
def test_a_top_that_begins_in_place_is_given_a_copy(at):
    parts = cl.cut(Skipping(), at)
    assert overwrites(parts, Batch(X, X))
    z = Smashed.of(parts.bottom(X)).detach()
    leaves = {n: t.requires_grad_() for n, t in [("main", z.main), *z.others.items()]}
    with pytest.raises(RuntimeError, match="in-place"):
        parts.top(**leaves)
    sequence = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 4))
    assert overwrites(cl.cut(sequence, "0"), Batch(X, X))
    assert not overwrites(cl.cut(sequence, "1"), Batch(X, X))


def test_a_traced_cut_with_a_tail_equals_the_uncut_model():
    model = Skipping()
    assert_equals_uncut(model, cl.cut(model, "second", tail="last"), X)
    with pytest.raises(BadInput, match="the tail would need first too"):
        cl.cut(model, "second", tail="relu")


def test_an_unknown_cut_is_refused_with_the_legal_ones():
    with pytest.raises(BadInput, match=r"'stage1.blok1'.*Did you mean 'stage1.block1'.*stage1.block2"):
        cl.cut(small_model(), "stage1.blok1")
    with pytest.raises(BadInput, match=r"'nowhere'.*first.*third"):
        cl.cut(Skipping(), "nowhere")
    with pytest.raises(BadInput, match="leaves nothing behind it; choose an earlier block"):
        cl.cut(small_model(), "classifier")


def test_tied_parameters_are_refused_by_name():
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    with pytest.raises(BadInput, match=r"'0.weight' of the bottom is '2.weight' of the top"):
        cl.cut(nn.Sequential(first, nn.ReLU(), last), "1")


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Peeking(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x)) + x


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x)) if self.training else self.a(x)


@pytest.mark.parametrize(("model", "at", "why"), [
    (Untraceable(), "a", "cannot be traced"),
    (Peeking(), "a", "raw data would cross"),
    (Moody(), "a", "other steps in train"),
])  # fmt: skip
def test_what_cannot_be_cut_is_refused_with_a_remedy(model, at, why):
    with pytest.raises(BadInput, match=why):
        cl.cut(model, at)


def test_integers_that_cross_are_context_and_have_no_gradient():
    z = Smashed(torch.zeros(2, 3), {"mask": torch.ones(2, dtype=torch.bool), "skip": torch.zeros(2, 1)})
    assert set(z.tensors("smashed")) == {"smashed", "context/mask", "smashed/skip"}
    with pytest.raises(BadInput, match="'size', a int"):
        Smashed.of({"main": torch.zeros(1), "size": 3})
