"""Small networks, small data, and where the real data lie."""

import os
import site
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.run import Paused, train
from cutlayer.streams import stream

ROOT = Path(__file__).resolve().parent.parent
QUICK = "--num-train 64 --num-test 32 --rounds 2 --warmup-rounds 0 --model resnet8 --batch-size 16".split()


def real_data():
    """Return the folder of the real data sets, or None."""
    found = os.environ.get("CUTLAYER_DATA") or str(ROOT.parent / "shared" / "data")
    return found if Path(found).is_dir() else None


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the real data sets; tests that need it are skipped without it."""
    found = real_data()
    if found is None:
        pytest.skip("no real data: set CUTLAYER_DATA to the folder that holds cifar10/, mnist/, ...")
    return Path(found)


def installed():
    """Return what is installed in this environment, with the time at which each package was."""
    found = {
        path for folder in site.getsitepackages() for path in Path(folder).glob("*") if path.suffix in (".dist-info", ".pth")
    }
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="session", autouse=True)
def environment_stays_as_it_is():
    before = installed()
    yield
    assert installed() == before, "a test changed the environment that runs it"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_figures(monkeypatch):
    """Reports without figures, for tests of many runs: drawing is nine tenths of a small run's time."""
    from cutlayer import figures

    monkeypatch.setattr(figures, "draw", lambda groups, metric: [])


def until_done(recipe, parts, clients, out, task):
    """Run, stopping at every mark and starting again from disk with objects of its own; return the result and the stops."""
    stops = 0
    while True:
        try:
            return train(recipe, parts, clients, task, out, deadline=time.monotonic() - 1), stops
        except Paused:
            torch.randn(7)  # whatever else draws in between
            stops += 1
            assert stops < 100


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


def small_model(seed=0, num_classes=4):
    """A sequence of named blocks with BatchNorm, for images 1x6x6."""
    torch.manual_seed(seed)
    stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    stage1 = nn.Sequential(OrderedDict(block1=Residual(4), block2=Residual(4)))
    return nn.Sequential(
        OrderedDict(
            stem=stem,
            stage1=stage1,
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            hidden=nn.Sequential(nn.Linear(16, 8), nn.ReLU()),
            classifier=nn.Linear(8, num_classes),
        )
    )


def small_data(n=24, num_test=12, seed=1, num_classes=4):
    """Images 1x6x6 whose classes can be told apart."""
    draw = stream(seed, "test data")
    y = torch.arange(n + num_test) % num_classes
    x = torch.randn(n + num_test, 1, 6, 6, generator=draw) * 0.5
    x[torch.arange(n + num_test), 0, y % 6, y % 6] += 2.0
    train, test = TensorDataset(x[:n], y[:n]), TensorDataset(x[n:], y[n:])
    return cl.data.from_datasets(train, test, num_classes)


def equal(mine, theirs):
    """Two state dicts (or modules) are the same, bit for bit."""
    mine, theirs = (m.state_dict() if isinstance(m, nn.Module) else m for m in (mine, theirs))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
