"""A module that takes more than the activations: it trains, its weights are written, and its cost is unknown."""

import json
from dataclasses import make_dataclass

import pytest
import torch
from conftest import small_data, small_model
from safetensors.torch import load_file
from torch import nn

import cutlayer as cl
from cutlayer import outputs
from cutlayer.errors import BadInput
from cutlayer.report import read, rows

pytestmark = pytest.mark.usefixtures("no_figures")


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, z, y, extra):
        return nn.functional.cross_entropy(self.layer(z.mean((2, 3)) + extra), y)


class Local:
    """Decoupled training with a head that takes (z, y, extra)."""

    Options = make_dataclass("LocalOptions", [], frozen=True)
    needs_labels = False

    def __init__(self, options, client):
        client.add("local", Head(), lambda module, z, batch, task: module(z.main, batch.y, torch.ones(4)))

    @staticmethod
    def comes_back(options):
        return False

    def step(self, client, batch):
        z = client.forward(batch)
        yield from client.uplink(z, batch, gradient=False)
        client.update(client.loss("local", z, batch))
        return {}

    def state(self):
        return {}

    def load(self, state):
        pass


def run(out=None, **fields):
    clients = cl.partition.contiguous(small_data(n=12).train, num_clients=1)
    how = {"method": "test_unknown_costs:Local", "rounds": 1, "batch_size": 4, "num_threads": 1, "lr": 0.05}
    return cl.run(cl.cut(small_model(), "stage1"), clients, out=out, **how, **fields)


def test_a_cost_that_cannot_be_counted_is_unknown_and_everything_is_saved(tmp_path):
    result = run(tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["macs_per_sample"]
    assert counts["local"] is None
    assert counts["bottom"] > 0 < counts["top"]
    assert load_file(tmp_path / "run" / "weights" / "local.safetensors").keys() == result.modules["local"].state_dict().keys()
    header, (row,) = rows([read(tmp_path / "run")])
    assert dict(zip(header, row, strict=True))["client multiply-adds / sample"] == "unknown"


def test_a_virtual_clock_refuses_an_unknown_cost_before_training():
    with pytest.raises(BadInput, match=r"multiply-adds of 'local' cannot be counted .*TypeError.*drop uplink"):
        run(speeds=1e6, server_speed=1e9)


def test_weights_are_written_before_a_figure_can_fail(tmp_path, monkeypatch):
    def broken(modules, batch):
        raise RuntimeError("no figure")

    monkeypatch.setattr(outputs, "macs", broken)
    with pytest.raises(RuntimeError, match="no figure"):
        run(tmp_path / "run")
    assert (tmp_path / "run" / "weights" / "bottom.safetensors").exists()
