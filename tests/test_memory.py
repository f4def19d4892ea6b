"""Memory of a side: live tensors worked out by hand, stores that grow, marks, and no change of what is computed."""

import gc
import time
from contextlib import nullcontext

import pytest
import torch
from conftest import equal, small_data, small_model, until_done
from torch import nn

import cutlayer as cl
from cutlayer.memory import LiveTensors, owned_tensors, total_bytes
from cutlayer.recipes.recipe import make

pytestmark = pytest.mark.usefixtures("no_figures")
QUICK = {"rounds": 3, "batch_size": 4, "num_threads": 1, "lr": 0.05, "checkpoint_every": 2}


def peak_of(compute, owned=()):
    live = LiveTensors()
    with live.watch():
        compute()
    return live.peak(owned)


def test_live_tensors_are_counted_from_their_creation_to_their_end():
    def compute():
        a = torch.empty(1000, dtype=torch.uint8)
        b = torch.empty(500, dtype=torch.uint8)
        view = a[10:20]
        del a  # its storage lives on in the view
        c = torch.empty(300, dtype=torch.uint8)
        del view, b
        torch.empty(1400, dtype=torch.uint8)
        return c

    assert peak_of(compute) == 1800  # 1000 + 500 + 300, then 300 + 1400


def test_work_in_place_and_views_take_no_memory_and_a_storage_that_grows_counts_its_growth():
    x = torch.zeros(100)
    assert peak_of(lambda: x.add_(1).view(10, 10).t().neg_()) == 400
    y = torch.empty(10)
    assert peak_of(lambda: torch.add(torch.ones(100), 1, out=y.resize_(100))) == 400 + 400


def test_what_comes_from_elsewhere_counts_with_its_own_bytes_while_it_is_held():
    part = torch.zeros(10_000)[:25]
    assert peak_of(lambda: part.sum()) == 100 + 4


def test_live_tensors_of_a_linear_step_are_those_worked_out_by_hand():
    layer, x = nn.Linear(100, 200), torch.randn(50, 100)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def step():
        y = layer(x)
        loss = y.relu().sum()
        del y
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # with momentum that is new, and with momentum that was there
        live = LiveTensors()
        with live.watch():
            step()
        owned = list(owned_tensors([layer], optimizer))
        weights = 4 * (200 * 100 + 200)
        assert total_bytes(owned) == 2 * weights  # momentum
        # x, the gradient of y, both gradients of the layer; the loss and its gradient
        assert live.peak(owned) == 4 * (50 * 100 + 50 * 200) + weights + 8


def test_a_record_of_live_tensors_changes_no_bit(monkeypatch):
    def trained(scheme, **fields):
        clients = cl.partition.iid(small_data(n=24).train, num_clients=2)
        return cl.run(cl.cut(small_model(), "stage1"), clients, scheme=scheme, **{**QUICK, "momentum": 0.9, **fields})

    cases = [("vanilla", {}), ("dsl", {"auxiliary": "pool_linear", "precision": "bfloat16"})]
    with_it = [trained(scheme, **fields) for scheme, fields in cases]
    monkeypatch.setattr(LiveTensors, "watch", lambda self: nullcontext())
    without = [trained(scheme, **fields) for scheme, fields in cases]
    for mine, theirs in zip(with_it, without, strict=True):
        assert all(equal(mine.modules[name], theirs.modules[name]) for name in theirs.modules)
        assert mine.summary["bytes"] == theirs.summary["bytes"]
        assert mine.summary["peak_memory_bytes"]["client"] > theirs.summary["peak_memory_bytes"]["client"]


def test_a_record_of_live_tensors_keeps_nothing_alive():
    live = LiveTensors()
    with live.watch():
        kept = torch.ones(3)
        reference = live.known[kept.untyped_storage()._cdata][0]
    del kept
    gc.collect()
    assert reference() is None


def test_compiled_code_runs_compiled_in_the_measured_step():
    calls = []

    def backend(graph, inputs):
        return lambda *values: calls.append(1) or graph.forward(*values)

    net = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), backend=backend)
    x = torch.randn(2, 4)
    with torch.no_grad():
        plain = net(x)
        with LiveTensors().watch():
            watched = net(x)
    assert len(calls) == 2
    assert torch.equal(plain, watched)


def test_the_servers_peak_holds_the_whole_activation_store_of_async_loss():
    """24 samples of 4x6x6 floats and their labels, after the last batch of the first round."""
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=1)
    parts = cl.cut(small_model(), "stage1.block1")
    how = {**QUICK, "rounds": 1, "checkpoint_every": 0}
    stored = cl.run(parts, clients, method="loss_threshold", **how).summary["peak_memory_bytes"]["server"]
    plain = cl.run(parts, clients, method="backprop", **how).summary["peak_memory_bytes"]["server"]
    assert stored == plain + 24 * (4 * 6 * 6 * 4 + 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"scheme": "async_loss", "threshold": 100.0},
        {"scheme": "vanilla"},
        {"scheme": "fsl_sage", "auxiliary": "linear", "align_epochs": 1, "align_rounds": 2, "memory_size": 10},
        {"method": "synthetic_gradient", "delay": 3},
        {"scheme": "dsl", "auxiliary": "linear", "codec": {"weights": "feedback+top_k@0.5"}},
    ],
    ids=lambda fields: next(iter(fields.values())),
)
def test_memory_figures_after_a_resume_at_every_mark_are_those_of_the_undisturbed_run(fields, tmp_path):
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=2)
    parts = cl.cut(small_model(), "stage1.block1")
    whole = cl.run(parts, clients, **{**QUICK, **fields}).summary
    recipe = make({**whole["recipe"]})
    stopped, stops = until_done(recipe, parts, clients, tmp_path / "stopped", cl.Task())
    assert stops
    for figure in ("memory_figure", "peak_memory_bytes", "kept_for_backward_bytes", "bytes_left_after_step"):
        assert stopped.summary[figure] == whole[figure], figure


def test_the_memory_figure_is_named_and_both_are_there():
    clients = cl.partition.contiguous(small_data(n=8).train, num_clients=1)
    summary = cl.run(cl.cut(small_model(), "stage1"), clients, **{**QUICK, "rounds": 1}).summary
    assert summary["memory_figure"] == "live tensors"
    for side in ("client", "server"):
        assert 0 < summary["kept_for_backward_bytes"][side] < summary["peak_memory_bytes"][side]


def test_measuring_one_step_costs_little():
    live, x = LiveTensors(), torch.randn(8, 8)
    begin = time.perf_counter()
    with live.watch():
        for _ in range(300):
            x = x.relu()
    assert time.perf_counter() - begin < 1.0
