"""Overlap: the server in a thread of its own, where nothing comes back: the same weights, and both at work at once."""

import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from conftest import equal, small_data, small_model, until_done
from torch import nn

import cutlayer as cl
from cutlayer.errors import BadInput, RunFailed
from cutlayer.meter import Meter
from cutlayer.recipes.recipe import make
from cutlayer.transports.behind import Overlapped

QUICK = {"rounds": 3, "batch_size": 4, "num_threads": 1, "lr": 0.05}
HEAD = {"auxiliary": "mlp", "auxiliary_width": 8}


def run(scheme="dsl", n=24, parts=None, **fields):
    clients = cl.partition.contiguous(small_data(n=n).train, num_clients=2)
    head = HEAD if "auxiliary" in make({"scheme": scheme}).options else {}
    return cl.run(parts or cl.cut(small_model(), "stage1.block1"), clients, scheme=scheme, **{**QUICK, **head, **fields})


@pytest.mark.parametrize("bound", [1, 3, 100])
@pytest.mark.parametrize(
    ("scheme", "fields"),
    [
        ("dsl", {}),
        ("dsl_seq", {"codec": {"smashed": "uniform4"}}),
        ("dsl_fed", {"clip": 0.5}),
        ("locsplitfed", {"fedprox": 0.1}),
        ("cse_fsl", {"send_every": 2}),
        ("fsl_sage", {"align_rounds": 2, "align_epochs": 2}),
        ("heron_sfl", {"lr": 0.003}),
    ],
)
def test_law7_the_weights_are_those_of_the_serial_run(scheme, fields, bound):
    serial, both = run(scheme, **fields), run(scheme, overlap=bound, **fields)
    assert all(equal(serial.modules[name], both.modules[name]) for name in serial.modules)
    assert serial.summary["bytes"] == both.summary["bytes"]
    mine, theirs = (
        [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in result.records]
        for result in (serial, both)
    )
    assert mine == theirs


def test_both_threads_are_busy_at_once(monkeypatch):
    """The server's first pass does not end before the client has begun one."""
    server_in, client_in, threads = threading.Event(), threading.Event(), set()
    plain = Meter.phase

    @contextmanager
    def meeting(self, name, client=0):
        threads.add((name.partition("_")[0], threading.current_thread().name))
        if name.startswith("client") and server_in.is_set():
            client_in.set()
        with plain(self, name, client):
            if name == "server_forward" and not server_in.is_set():
                server_in.set()
                assert client_in.wait(timeout=20), "the client rests while the server works"
            yield

    monkeypatch.setattr(Meter, "phase", meeting)
    run(overlap=2, rounds=1)
    assert threads == {("client", "MainThread"), ("server", "cutlayer-server")}


def test_what_breaks_in_the_servers_thread_ends_the_run_and_the_thread():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.seen = nn.Linear(4, 4), 0

        def forward(self, z):
            self.seen += self.training and z.requires_grad is False and torch.is_grad_enabled()
            if self.seen > 2:
                raise RunFailed("the top broke")
            return self.linear(z.mean((2, 3)))

    parts = cl.Parts(cl.cut(small_model(), "stem").bottom, Breaks())
    with pytest.raises(RunFailed, match="the top broke"):
        run(parts=parts, overlap=3)
    until = time.monotonic() + 5
    while any(thread.name == "cutlayer-server" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(thread.name == "cutlayer-server" for thread in threading.enumerate())


REFUSED = [
    ({"scheme": "vanilla"}, "clients wait for the server"),
    ({"scheme": "hosl"}, "clients wait for the server"),
    ({"scheme": "dsl", "lambda_weight": 0.5}, "clients wait for the server"),
    ({"scheme": "dsl", "tail": "last"}, "clients wait for features"),
    ({"scheme": "fedavg"}, "has nothing to do"),
    ({"scheme": "dsl", "uplink": 10.0}, "their own clock"),
    ({"scheme": "dsl", "diagnose_every": 1}, "looks at the server"),
]


@pytest.mark.parametrize(("fields", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_where_somebody_waits_it_is_refused(fields, why):
    with pytest.raises(BadInput, match=why):
        make({**fields, "overlap": 2})


def test_parts_that_draw_are_refused_by_name():
    for name, bottom, top in (("bottom", nn.Dropout(0.5), nn.Identity()), ("top", nn.Identity(), nn.Dropout(0.5))):
        parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), bottom), nn.Sequential(top, nn.Linear(8, 4)))
        with pytest.raises(BadInput, match=f"the {name} draws random numbers"):
            run(parts=parts, overlap=2)


def test_a_run_that_overlaps_can_be_stopped_and_goes_on(tmp_path):
    from cutlayer.run import train
    from cutlayer.task import Task

    recipe = make({"scheme": "dsl_seq", "num_clients": 2, "overlap": 2, "checkpoint_every": 2, **QUICK, **HEAD})
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=2)
    parts = cl.cut(small_model(), "stage1.block1")
    whole = train(recipe, parts, clients, Task())
    broken, _ = until_done(recipe, parts, clients, tmp_path, Task())
    assert all(equal(whole.modules[name], broken.modules[name]) for name in whole.modules)


def test_who_closes_waits_for_the_step_that_is_computed_and_drops_the_others():
    """An interpreter that ends beside a thread that computes is aborted."""
    begun, served = threading.Event(), []

    def serve(i):
        begun.set()
        time.sleep(0.1)
        served.append(i)
        return []

    behind = Overlapped(4, cuda=False)
    for i in range(4):
        behind.put(partial(serve, i))
    begun.wait(5)
    behind.close()
    assert not behind.thread.is_alive()
    assert served == [0]
