"""A data owner whose targets are its inputs is warned, because then raw inputs cross as labels."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.errors import Advice
from cutlayer.recipes.recipe import make
from cutlayer.sides import member

pytestmark = pytest.mark.usefixtures("no_figures")
QUICK = {"rounds": 1, "batch_size": 8, "num_threads": 1, "lr": 0.05}
X = torch.rand(24, 1, 3, 3, generator=torch.Generator().manual_seed(0))
PARTS = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), nn.Linear(4, 9))
WITH_TAIL = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), nn.Linear(4, 4), nn.Linear(4, 9))
TASK = cl.Task(
    loss=lambda o, y: F.mse_loss(o, y.flatten(1).float()), metrics={"error": lambda o, y: 0.0}, higher_is_better=False
)


def clients(y):
    return cl.partition.iid(cl.data.from_datasets(TensorDataset(X, y), TensorDataset(X, y), 1).train, 1)


def advice(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in seen if each.category is Advice]


@pytest.mark.parametrize("y", [X, X.flatten(1), X.double()], ids=["same", "flat", "double"])
@pytest.mark.parametrize("scheme", ["vanilla", "dsl"])
def test_targets_that_are_inputs_are_warned_about_before_training(scheme, y):
    head = {"auxiliary": "linear"} if scheme == "dsl" else {}
    (line,) = advice(lambda: cl.run(PARTS, clients(y), task=TASK, scheme=scheme, **QUICK, **head))
    assert (
        line
        == "targets equal the inputs, so raw inputs cross to the server as labels; give the model a tail, then labels stay home"
    )


def test_targets_that_are_inputs_in_float64_are_warned_about():
    wide = torch.rand(24, 1, 3, 3, dtype=torch.float64)
    share = cl.partition.iid(cl.data.from_datasets(TensorDataset(wide, wide), TensorDataset(wide, wide), 1).train, 1)
    assert len(advice(lambda: cl.run(PARTS, share, task=TASK, scheme="vanilla", **QUICK))) == 1


def test_nobody_is_warned_where_no_inputs_cross():
    assert not advice(lambda: cl.run(PARTS, clients(X + 0.1), task=TASK, scheme="vanilla", **QUICK))
    assert not advice(lambda: cl.run(WITH_TAIL, clients(X), task=TASK, scheme="u_shaped", **QUICK))
    assert not advice(lambda: cl.run(PARTS, clients(X), task=TASK, scheme="centralised", **QUICK))


def test_a_client_elsewhere_is_warned(tmp_path):
    share = clients(X)
    recipe = make({"scheme": "vanilla", "transport": "grpc", **QUICK})
    assert len(advice(lambda: member(recipe, PARTS, TASK, share.source, share.shares[0], 0, tmp_path))) == 1
