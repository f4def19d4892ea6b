"""A head or a loss that cannot train what it should is refused before training; heads follow the network's output."""

import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import small_data, small_model
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.errors import BadInput
from cutlayer.models import HEADS, build_head

pytestmark = pytest.mark.usefixtures("no_figures")
QUICK = {"rounds": 1, "batch_size": 8, "num_threads": 1, "lr": 0.05}
HEADED = {
    "auxiliary_loss": {"scheme": "dsl"},
    "fsl_sage": {"scheme": "fsl_sage", "align_epochs": 1},
    "fsl_sage without alignment": {"scheme": "fsl_sage", "align_rounds": 0},
    "zeroth_order": {"scheme": "heron_sfl"},
    "a method of one's own": {"method": f"{__name__}:Own", "schedule": "relay"},
}


def network(outputs, squeeze=False):
    blocks = OrderedDict(
        first=nn.Linear(6, 8), tanh=nn.Tanh(), second=nn.Linear(8, 8), third=nn.Tanh(), last=nn.Linear(8, outputs)
    )
    if squeeze:
        blocks["shape"] = nn.Flatten(0)
    torch.manual_seed(0)
    return nn.Sequential(blocks)


def clients(y, num_classes=1, num_clients=1):
    x = torch.randn(len(y), 6, generator=torch.Generator().manual_seed(0))
    data = cl.data.from_datasets(TensorDataset(x, y), TensorDataset(x, y), num_classes)
    return cl.partition.iid(data.train, num_clients)


def regression(loss=F.mse_loss):
    return cl.Task(loss=loss, metrics={"error": lambda o, y: float(F.l1_loss(o, y))}, higher_is_better=False)


def column(task, depth, width):
    """A head whose outputs are (N, 1) whatever the network's are."""
    return nn.Sequential(nn.Flatten(), nn.Linear(task.cut_shape[-1], 1))


@dataclass(frozen=True)
class OwnOptions:
    """The head."""

    auxiliary: str = "linear"
    loss: str = "task"


def mean_loss(head, z, batch, task):
    return task.loss(z.into(head), batch.y)


def own_loss(head, z, batch, task):
    return (z.into(head) - batch.y).square().mean()


class Own:
    """Trains on a head that it adds itself."""

    Options, needs_labels = OwnOptions, False

    def __init__(self, options, client):
        client.add("mine", build_head(options.auxiliary, client.task), mean_loss if options.loss == "task" else own_loss)

    @staticmethod
    def comes_back(options):
        return False

    def step(self, client, batch):
        z = client.forward(batch)
        yield from client.uplink(z, batch, gradient=False)
        client.update(client.loss("mine", z, batch))
        return {}

    def state(self):
        return {}

    def load(self, state):
        pass


@pytest.mark.parametrize("fields", HEADED.values(), ids=HEADED)
def test_a_head_of_another_shape_is_refused_before_training(fields):
    shares = clients(torch.randn(24))
    with pytest.raises(BadInput, match=r"gives outputs of shape \(4, 1\) where the network gives \(4,\)"):
        cl.run(
            cl.cut(network(1, squeeze=True), "tanh"),
            shares,
            task=regression(),
            **QUICK,
            **fields,
            auxiliary=f"{__name__}:column",
        )


def turning(task, depth, width):
    """A head that fits a cut of 8 numbers, and gives (N, 1) behind other widths."""
    return nn.Sequential(nn.Linear(task.cut_shape[0], 1), nn.Flatten(0) if task.cut_shape == (8,) else nn.Identity())


def test_a_head_of_another_shape_at_the_server_is_refused_before_training():
    blocks = OrderedDict(a=nn.Linear(6, 8), b=nn.Linear(8, 5), c=nn.Linear(5, 1), d=nn.Flatten(0))
    shares = clients(torch.randn(24))
    with pytest.raises(BadInput, match=r"a head at the server gives outputs of shape \(4, 1\)"):
        cl.run(
            cl.cut(nn.Sequential(blocks), "a"), shares, task=regression(), scheme="dsl", server_cuts="b", **QUICK,
            auxiliary=f"{__name__}:turning",
        )  # fmt: skip


@pytest.mark.parametrize("fields", HEADED.values(), ids=HEADED)
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_heads_follow_the_networks_output(fields, shape):
    model = network(shape[0] if shape else 1, squeeze=not shape)
    result = cl.run(
        cl.cut(model, "tanh"), clients(torch.randn(24, *shape)), task=regression(), **QUICK, **fields,
        **({} if "method" in fields else {"auxiliary": "linear"}),
    )  # fmt: skip
    assert result.records[-1]["train_loss"] > 0


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("cut", [(8,), (8, 4, 4), (5, 8)], ids=["vector", "map", "sequence"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)], ids=str)
def test_each_head_of_the_table_has_the_networks_output_shape(name, cut, shape):
    head = build_head(name, cl.Task(num_classes=7, cut_shape=cut, output_shape=shape), width=4)
    assert head(torch.randn(2, *cut)).shape == (2, *shape)


def test_a_head_at_each_position_follows_the_networks_axes():
    z = torch.randn(2, 5, 8)
    for axis, shape in ((2, (3, 5)), (1, (5, 3))):
        task = cl.Task(num_classes=7, cut_shape=(5, 8), output_shape=shape, per_position=True, position_axis=axis)
        for name in HEADS:
            assert build_head(name, task, width=4)(z).shape == (2, *shape)


@pytest.mark.parametrize("classes", [3, 5])
def test_positions_are_found_where_classes_and_positions_are_as_many(classes):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.linear = nn.Linear(1, 8), nn.Linear(8, classes)

        def forward(self, x):
            return self.linear(torch.tanh(self.embed(x[..., None])))

    def last_axis(output, y):
        return F.cross_entropy(output.flatten(0, 1), y.flatten())

    from cutlayer.fit import fitted
    from cutlayer.recipes.recipe import make

    x, y = torch.randn(24, 5), torch.randint(0, classes, (24, 5))
    data = cl.data.from_datasets(TensorDataset(x, y), TensorDataset(x, y), classes)
    task = fitted(cl.Task(loss=last_axis), make({"scheme": "dsl"}), cl.cut(Tagger(), "embed"), data.train)
    assert (task.per_position, task.position_axis, task.head_width) == (True, 1, classes)


@pytest.mark.parametrize("scheme", ["vanilla", "centralised", "splitfed_v1", "u_shaped"])
def test_a_loss_that_broadcasts_is_refused_for_the_network(scheme):
    parts = cl.cut(network(1), "tanh", "third" if scheme == "u_shaped" else None)
    with pytest.raises(
        BadInput, match=r"stays the same when the targets .* \(outputs \(4, 1\), targets \(4,\): they broadcast"
    ):
        cl.run(parts, clients(torch.randn(24)), task=regression(), scheme=scheme, **QUICK)


CANCELLING = {
    "signs": (lambda o, y: -(o * y).mean(), torch.ones(24) * (2.0 * (torch.arange(24) % 2) - 1)),
    "covariance": (lambda o, y: ((o - o.mean()) * (y - y.mean())).mean(), torch.randn(24)),
    "rare targets": (F.mse_loss, (torch.arange(24) == 7).float()),
}


@pytest.mark.parametrize(("loss", "y"), CANCELLING.values(), ids=CANCELLING)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_broadcasts_is_refused_where_its_terms_cancel_or_targets_are_rare(loss, y):
    with pytest.raises(BadInput, match="stays the same when the targets of unlike samples are permuted"):
        cl.run(cl.cut(network(1), "tanh"), clients(y), task=regression(loss), **QUICK)


def test_a_loss_without_targets_is_refused():
    with pytest.raises(BadInput, match="it does not read them sample by sample"):
        cl.run(
            cl.cut(network(2), "tanh"), clients(torch.randn(24, 2)), task=regression(lambda o, y: o.square().mean()), **QUICK
        )


def test_a_methods_own_loss_that_broadcasts_is_refused():
    own = {"method": f"{__name__}:Own", "schedule": "relay", "loss": "own", "auxiliary": f"{__name__}:column"}
    with pytest.raises(BadInput, match="the loss of the module 'mine' stays the same"):
        cl.run(cl.cut(network(1, squeeze=True), "tanh"), clients(torch.randn(24)), task=regression(), **QUICK, **own)


def zeros(outputs):
    model = network(outputs)
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    return model


def same_class(output, y):
    """A contrastive loss: only which samples share a class counts."""
    like = (y[:, None] == y[None]).float()
    return (torch.cdist(output, output) * (2 * like - 1)).mean()


LEGITIMATE = {
    "classes": (network(4), F.cross_entropy, torch.arange(24) % 4),
    "an untrained network of equal outputs": (zeros(4), F.cross_entropy, torch.arange(24) % 4),
    "void": (network(4), nn.CrossEntropyLoss(ignore_index=3), torch.arange(24) % 4),
    "small targets": (network(2), F.mse_loss, 1e-6 * torch.randn(24, 2)),
    "large targets": (network(1, squeeze=True), F.mse_loss, 1e6 + torch.randn(24)),
    "whole numbers": (network(1), lambda o, y: F.mse_loss(o[:, 0], y.float()), 1000 * torch.arange(24)),
    "several labels": (network(3), F.binary_cross_entropy_with_logits, (torch.randn(24, 3) > 0).float()),
    "probabilities": (nn.Sequential(*network(3), nn.Sigmoid()), F.binary_cross_entropy, (torch.randn(24, 3) > 0).float()),
    "shared classes": (network(3), same_class, torch.arange(24)),
    "rates": (nn.Sequential(*network(2), nn.Softplus()), lambda o, y: F.poisson_nll_loss(o, y, log_input=False), torch.rand(24, 2).round()),
    "one class": (network(2), F.cross_entropy, torch.zeros(24, dtype=torch.long)),
    "one sample": (network(2), F.cross_entropy, torch.zeros(1, dtype=torch.long)),
}  # fmt: skip


@pytest.mark.parametrize(("model", "loss", "y"), LEGITIMATE.values(), ids=LEGITIMATE)
def test_losses_that_read_targets_train(model, loss, y):
    at = "tanh" if hasattr(model, "tanh") else "1"
    num_classes = int(y.max()) + 1 if y.dim() == 1 and not y.is_floating_point() else 1
    task = cl.Task(loss=loss, metrics={"outputs": lambda o, y: float(len(o))})
    result = cl.run(cl.cut(model, at), clients(y, num_classes), task=task, scheme="vanilla", **{**QUICK, "lr": 1e-9})
    assert len(result.records) == 1


def test_dense_outputs_are_refused_with_a_head_of_the_table():
    model = nn.Sequential(OrderedDict(a=nn.Conv2d(1, 4, 3, padding=1), b=nn.Conv2d(4, 3, 1)))
    x, y = torch.randn(16, 1, 6, 6), torch.randint(0, 3, (16, 6, 6))
    data = cl.data.from_datasets(TensorDataset(x, y), TensorDataset(x, y), 3)
    for scheme in ("dsl", "fsl_sage", "heron_sfl"):
        with pytest.raises(BadInput, match=r"dense, of shape \(3, 6, 6\) a sample, and there are no dense heads yet"):
            cl.run(cl.cut(model, "a"), cl.partition.iid(data.train, 1), scheme=scheme, **QUICK)
    own = {"scheme": "dsl", "auxiliary": f"{__name__}:dense", **QUICK}
    assert cl.run(cl.cut(model, "a"), cl.partition.iid(data.train, 1), **own).records


def dense(task, depth, width):
    return nn.Conv2d(task.cut_shape[0], task.output_shape[0], 1)


def test_the_trial_leaves_global_generators_where_they_were():
    from cutlayer.fit import fitted
    from cutlayer.recipes.recipe import make

    class Noisy(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + 0.1 * torch.randn(6) + random.random() + np.random.rand(), y

    x, y = torch.randn(24, 6), torch.arange(24) % 4
    source = cl.data.from_datasets(Noisy(x, y), Noisy(x, y), 4).train
    recipe, parts, states = make({"scheme": "dsl"}), cl.cut(network(4), "tanh"), []
    for trial in (lambda: None, lambda: fitted(cl.Task(), recipe, parts, source)):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        trial()
        states.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert states[0] == states[1]


def test_the_trial_changes_no_weight_and_no_statistics():
    data, model = small_data(), small_model()
    parts = cl.cut(model, "stage1.block1")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cl.run(parts, cl.partition.iid(data.train, 1), scheme="dsl", auxiliary="mlp", auxiliary_width=8, **QUICK)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
