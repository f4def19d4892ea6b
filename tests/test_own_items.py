"""A data set of the user's own whose items draw random numbers: the same seed gives the same weights, after a resume too."""

import json
import random
import threading
import warnings

import numpy as np
import pytest
import torch
from across import BASE
from network import Net
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

import cutlayer as cl
from cutlayer.data.items import check_reproducible, may_draw, read_batch
from cutlayer.data.sources import MapStyle, Source, Tensors
from cutlayer.errors import Advice, BadInput
from cutlayer.recipes.recipe import make
from cutlayer.run import train
from cutlayer.serve import figures
from cutlayer.streams import stream
from cutlayer.task import Batch, Task

X, Y = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
DRAWS = {
    "torch": lambda: torch.rand(8),
    "numpy": lambda: torch.from_numpy(np.random.rand(8)).float(),
    "random": lambda: torch.tensor([random.random() for _ in range(8)]),
}
FIELDS = {"scheme": "splitfed_v1", "rounds": 3, "batch_size": 16, "lr": 0.1, "num_threads": 1, "seed": 5}


class Items(Dataset):
    """Samples with noise from `draw`, or without."""

    def __init__(self, draw=None):
        self.draw = draw

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return X[i] + (0.5 * self.draw() if self.draw else 0), Y[i]


def seed_globals(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def global_states():
    return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def clients_of(draw, held_out=None):
    return cl.partition.iid(cl.data.from_datasets(Items(draw), Items(held_out), 3).train, 2)


def parts():
    torch.manual_seed(1)
    return cl.cut(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), "1")


def weights(result):
    return torch.cat([t.flatten() for module in result.modules.values() for t in module.state_dict().values()])


@pytest.mark.parametrize("how", DRAWS)
def test_the_seed_of_a_run_decides_what_items_draw_in_training_and_evaluation(how):
    clients, runs = clients_of(DRAWS[how], DRAWS[how]), []
    for seed in (1, 2):
        net = parts()
        seed_globals(seed)
        before = global_states()
        runs.append(cl.run(net, clients, **FIELDS))
        assert global_states() == before
    assert torch.equal(*map(weights, runs))
    assert [record["accuracy"] for record in runs[0].records] == [record["accuracy"] for record in runs[1].records]
    assert runs[0].summary["reproducible"] is True
    other = cl.run(parts(), clients, **{**FIELDS, "seed": 6})
    assert not torch.equal(weights(runs[0]), weights(other))


class Skipping(nn.Module):
    """A layer that is left out by chance, as LayerDrop does."""

    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(16, 16), draw

    def forward(self, x):
        return self.layer(x) if self.training and float(self.draw()[0]) < 0.5 else x


@pytest.mark.parametrize("where", ["layer", "loss"])
@pytest.mark.parametrize("how", DRAWS)
def test_the_seed_of_a_run_decides_what_layers_and_losses_draw(how, where):
    draw, plain, clients, runs = DRAWS[how], nn.functional.cross_entropy, clients_of(None), []
    task = Task(loss=lambda output, y: plain(output, y) * (1 + float(draw()[0]))) if where == "loss" else Task()
    for seed in (1, 2):
        torch.manual_seed(1)
        layer = Skipping(draw) if where == "layer" else nn.Identity()
        net = cl.cut(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), layer, nn.Linear(16, 3)), "1")
        seed_globals(seed)
        runs.append(cl.run(net, clients, task=task, **FIELDS))
    assert torch.equal(*map(weights, runs))


def test_items_are_drawn_anew_in_every_round_and_the_evaluation_set_is_not():
    source = MapStyle(Items(DRAWS["torch"]), 3)
    index = torch.arange(4)
    first, again, later = (read_batch(source, index, None, 0, "items", 1, r, 0).x for r in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


@pytest.mark.parametrize("how", DRAWS)
def test_a_run_that_goes_on_after_a_failure_ends_with_the_weights_of_an_undisturbed_one(how, tmp_path):
    clients = clients_of(DRAWS[how], DRAWS[how])
    recipe = cl.recipes.override({}, {**FIELDS, "num_clients": 2, "data": "own:x", "model": "own:y", "cut": "own"})

    def run(out, progress=None):
        return train(recipe, parts(), clients, Task(), out, progress=progress)

    def fail(done, steps, record):
        if done == 5:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", fail)
    seed_globals(9)
    resumed = run(tmp_path / "stopped")
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.records[-1]["accuracy"] == resumed.records[-1]["accuracy"]


def test_global_generators_are_restored_when_an_item_fails():
    def fail():
        seed_globals(7)
        np.random.randn()
        raise OSError("no such image")

    source = MapStyle(Items(), 3)
    source.dataset.draw = fail
    np.random.seed(3)
    np.random.randn()  # numpy keeps the second of two
    before = global_states()
    with pytest.raises(OSError, match="no such image"):
        read_batch(source, torch.arange(2), None, 0, "items")
    assert global_states() == before


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_a_data_set_with_a_generator_of_its_own_is_named_in_one_line_and_in_the_summary(split, tmp_path):
    own = torch.Generator().manual_seed(0)

    def draw():  # as a random flip does, it leaves many samples as they are
        return (torch.rand(1, generator=own) < 0.5).float()

    clients = clients_of(*((draw, None) if split == "training" else (None, draw)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = cl.run(parts(), clients, out=tmp_path, **FIELDS)
    (line,) = [str(each.message) for each in seen if issubclass(each.category, Advice) and "read twice" in str(each.message)]
    assert f"of the {split} set differs" in line
    assert "\n" not in line
    assert json.loads((tmp_path / "summary.json").read_text())["reproducible"] is False
    assert result.summary["reproducible"] is False


def test_samples_with_nan_are_reproducible():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_reproducible(MapStyle(Items(lambda: torch.full((8,), torch.nan)), 3), 0)


class OwnSource(Tensors):
    def batch(self, index: torch.Tensor, generator: torch.Generator | None) -> Batch:
        batch = super().batch(index, generator)
        return batch._replace(x=batch.x + torch.rand(batch.x.shape))


def test_only_sources_that_may_draw_pay_for_seeding():
    plain = Tensors(X, Y, 3)
    assert not may_draw(plain)
    assert not may_draw(cl.data.load("digits").train)
    assert may_draw(Tensors(X, Y, 3, augment=lambda x, generator: x + torch.rand(1)))
    assert may_draw(MapStyle(Items(), 3))
    assert not may_draw(MapStyle(Subset(TensorDataset(X, Y), range(9)), 3))
    own: Source = OwnSource(X, Y, 3)
    assert may_draw(own)
    one, other = (read_batch(own, torch.arange(3), stream(0, "a"), 0, "items").x for _ in range(2))
    assert torch.equal(one, other)


def test_clients_in_threads_of_one_process_do_not_draw_from_each_others_streams():
    source, found = MapStyle(Items(DRAWS["numpy"]), 3), {}

    def read(k):
        found[k] = [read_batch(source, torch.arange(16), None, 0, "items", k, 0, step).x for step in range(20)]

    threads = [threading.Thread(target=read, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, batches in found.items():
        assert all(
            torch.equal(x, read_batch(source, torch.arange(16), None, 0, "items", k, 0, step).x)
            for step, x in enumerate(batches)
        )


class Digits(Dataset):
    """Forty digits with noise from a generator of the data set's own."""

    def __init__(self):
        self.source, self.own = cl.data.load("digits").train, torch.Generator().manual_seed(0)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return self.source.x[i] + torch.rand(1, generator=self.own), int(self.source.labels[i])


def digits():
    return cl.data.from_datasets(Digits(), Digits(), 10)


def test_a_client_elsewhere_whose_samples_are_not_reproducible_marks_the_servers_summary(tmp_path, no_figures):
    recipe = make({**BASE, "scheme": "vanilla", "num_clients": 1, "rounds": 1})
    own = {name: value for name, value in recipe.flat().items() if not name.startswith("num_t")}
    net = Net(recipe, tmp_path)
    net.join("client0", recipe=make({**own, "num_threads": recipe.num_threads, "data": f"{__name__}:digits"}), own_data=True)
    with pytest.warns(Advice, match="of the training set differs"):
        net.wait()
    summary = net.result.summary
    assert summary["reproducible"] is False


def test_a_client_says_with_true_or_false_whether_its_samples_are_reproducible():
    told = {name: {} for name in ("seconds", "peak", "kept", "left", "held", "steps", "samples")}
    assert figures(told)["reproducible"] is True  # a client of an earlier version
    assert figures({**told, "reproducible": False})["reproducible"] is False
    with pytest.raises(BadInput, match="neither true nor false"):
        figures({**told, "reproducible": "no"})
