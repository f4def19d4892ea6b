"""Numbers of a remote client: a server checks counts, record names and finiteness, and goes on without the client that lies."""

import math
import re
from dataclasses import replace

import pytest
import torch
from across import BASE
from conftest import equal
from network import COPIES, RELAY, Net
from test_across import launch
from test_liars import ends, first_weight, server_side, told, with_numbers

from cutlayer.building import batches_per_round, order
from cutlayer.errors import BadInput, NotFinite, RunFailed
from cutlayer.methods import METHODS
from cutlayer.recipes.recipe import make
from cutlayer.record_names import MAX_UNDECLARED, RecordNames
from cutlayer.run import run_recipe
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.host import Host
from cutlayer.wire import Message

pytestmark = pytest.mark.usefixtures("no_figures")


def lying(monkeypatch, lie, name="client1"):
    """Let a client send something else than what it computed."""
    send = NetworkLine.send
    monkeypatch.setattr(
        NetworkLine, "send", lambda line, packed, label: send(line, lie(packed) if line.name == name else packed, label)
    )


COUNTS = {
    "weight": (told(with_numbers(weight=2.0**32)), "weight 4294967296 and batches 3; a client with 22 samples"),
    "one more": (told(with_numbers(weight=23.0)), "weight 23 and batches 3; a client with 22 samples"),
    "batches": (
        told(with_numbers(batches=4.0)),
        "batches 4; a client with 22 samples, as it said, has weight 22 and 3 batches",
    ),
    "no step": (ends(with_numbers(left=3.0)), "its turn ends before its first batch"),
}


@pytest.mark.parametrize(("lie", "why"), COUNTS.values(), ids=COUNTS)
def test_a_weight_or_batch_count_that_does_not_follow_from_the_samples_is_refused(lie, why, tmp_path, monkeypatch):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    with monkeypatch.context() as patched:
        lying(patched, lie)
        net.join("client0")
        net.join("client1").join(30)
    assert re.search(why, str(net.failed.pop("client1")))
    net.join("client1")
    result = net.wait()
    assert not net.said("client0 is turned away")
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_more_than_a_billion_samples_are_refused(tmp_path, monkeypatch):
    net = Net(COPIES, tmp_path, start_timeout=1.0)
    monkeypatch.setattr(NetworkLine, "_ready", lambda line: line.session.tell(kind="ready", held=[], samples=2**32))
    net.join("client1").join(30)
    assert "samples = 4294967296 is no count; whole numbers up to 1000000000 are" in str(net.failed.pop("client1"))
    with pytest.raises(RunFailed, match="missing"):
        net.wait()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_batches_of_a_round_are_counted_as_they_are_made(batch_size, drop_last):
    recipe = make({**BASE, "batch_size": batch_size, "drop_last": drop_last, "local_epochs": 2})
    for n in range(1, 30):
        assert batches_per_round(recipe, n) == len(order(recipe, n, 0, 0)), n


def at_round_end(message):
    return message.is_sync and not message.is_hello and not message.numbers["left"]


NAMES = {
    "undeclared": ("auxiliary_loss", r"record/auxiliary_loss is not declared by the method; its record_names are none"),
    "server": ("client_drift", r"record/client_drift is not declared by the method"),
    "loss": ("loss", r"record/loss is not declared by the method"),
}


@pytest.mark.parametrize(("name", "why"), NAMES.values(), ids=NAMES)
def test_a_record_name_that_the_method_does_not_declare_is_refused(name, why, tmp_path, monkeypatch):
    net = Net(COPIES, tmp_path)
    with monkeypatch.context() as patched:
        lying(patched, told(with_numbers(**{f"record/{name}": 1.0}), at_round_end))
        net.join("client0")
        net.join("client1").join(30)
    assert re.search(why, str(net.failed.pop("client1")))
    net.join("client1")
    assert all(record.get(name) != 1.0 for record in net.wait().records)


def test_every_method_of_the_package_declares_its_record_names():
    assert all(isinstance(entry.build.record_names, tuple) for entry in METHODS.values())


SERVER_NAMES = ["client_drift", "alignment_error", "state", "piece12_loss", "staleness_3", "loss"]


def test_a_method_without_record_names_records_32_names_but_none_of_the_server():
    names = RecordNames(None, {"round"}, client_loss=False)
    names.check([f"name{i}" for i in range(MAX_UNDECLARED)])
    with pytest.raises(BadInput, match="33 names in a record"):
        names.check([f"name{i}" for i in range(MAX_UNDECLARED + 1)])
    for name in [*SERVER_NAMES, "round"]:
        with pytest.raises(BadInput, match=f"record/{name} is written by the server alone"):
            names.check([name])
    RecordNames(None, {"loss"}, client_loss=True).check(["loss"])  # with a tail the clients alone know it


def test_a_record_before_the_end_of_a_round_is_refused(tmp_path):
    expected = server_side(COPIES, tmp_path).host.expected
    numbers = {"done": 0.0, "version": 0.0, "weight": 22.0, "batches": 3.0, "left": 3.0}
    expected.check(Message("sync", {}, numbers))
    with pytest.raises(BadInput, match="records before the end of its round"):
        expected.check(Message("sync", {}, {**numbers, "record/x": 1.0}))


def test_a_record_beyond_float32_is_refused(tmp_path):
    side = server_side(COPIES, tmp_path)
    for value in (math.inf, math.nan, 1e300):
        with pytest.raises(NotFinite, match=r"record/x = .* only finite numbers are sent"):
            side.host.expected.arriving(_packed(Message("sync", {}, {"record/x": value})), {})


def _packed(message):
    from cutlayer.wire import pack

    return pack(message, {})


def full(value):
    """Return a lie: every float that crosses the cut is this value."""
    return told(
        lambda packed: replace(
            packed,
            roles=tuple(
                role._replace(parts=tuple(torch.full_like(p, value) if p.is_floating_point() else p for p in role.parts))
                for role in packed.roles
            ),
        ),
        lambda message: message.kind == "smashed",
    )


INFINITE = {
    "weights": (COPIES, first_weight(torch.full((16, 1, 3, 3), math.inf)), "client1 is turned away: 'weights/"),
    "record": (COPIES, ends(with_numbers(**{"record/x": math.nan})), "client1 is turned away: record/x = nan"),
    "activations": (COPIES, full(math.inf), "client1 is turned away: 'smashed' in a message of kind 'smashed' holds infinity"),
    "relay": (RELAY, full(math.nan), "client1 is turned away: 'smashed' in a message of kind 'smashed' holds infinity"),
    "shared top": (
        make({**BASE, "scheme": "splitfed_v3"}),
        full(math.inf),
        "client1 is turned away: 'smashed' in a message of kind 'smashed' holds infinity",
    ),
}


@pytest.mark.parametrize(("recipe", "lie", "line"), INFINITE.values(), ids=INFINITE)
def test_a_client_that_sends_inf_is_excluded_and_the_others_go_on(recipe, lie, line, tmp_path, monkeypatch):
    net = Net(recipe, tmp_path, patience=0.5, max_offences=1)
    lying(monkeypatch, lie)
    for name in ("client0", "client1"):
        net.join(name)
    net.threads[1].join(60)
    assert "holds infinity or NaN" in str(error := net.failed.pop("client1")) or "record/x = nan" in str(error)
    result = net.wait()
    assert net.said(line), net.lines
    assert net.said("client1 was turned away once; the others go on without it")
    assert not net.said("client0 is turned away")
    assert len(result.records) == recipe.rounds
    assert all(tensor.isfinite().all() for module in result.modules.values() for tensor in module.state_dict().values())


def test_a_client_whose_inf_was_undone_may_come_back_and_the_result_is_the_same(tmp_path, monkeypatch):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    with monkeypatch.context() as patched:
        lying(patched, full(math.inf))
        net.join("client0")
        net.join("client1").join(60)
    assert "holds infinity or NaN" in str(net.failed.pop("client1"))
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


@pytest.mark.parametrize("clients", [1, 2])
@pytest.mark.parametrize("scheme", ["vanilla", "splitfed_v1", "dsl_fed"])
def test_honest_divergence_ends_with_lower_lr_over_grpc(scheme, clients, tmp_path):
    fields = {"auxiliary": "mlp", "auxiliary_width": 8} if scheme == "dsl_fed" else {}
    recipe = make({**BASE, **fields, "scheme": scheme, "num_clients": clients, "lr": 1e30})
    net = Net(recipe, tmp_path, patience=0.5)
    for k in range(clients):
        net.join(f"client{k}")
    net.server.join(60)
    for thread in net.threads:
        thread.join(30)
    assert isinstance(net.error, RunFailed), net.lines
    assert "lower lr (now 1e+30) or set clip" in str(net.error)


def test_a_mark_with_weights_that_are_not_finite_is_not_written(tmp_path):
    side = server_side(COPIES, tmp_path)
    with torch.no_grad():
        next(side.parties.server.copies[0].parameters()).fill_(math.nan)
    with pytest.raises(RunFailed, match=r"'top-0\..*' at the server holds infinity or NaN in round 0; lower lr"):
        side.parties.server.on_mark(side.parties.server)
    assert side.newest() == (None, 0)


def test_finite_messages_after_which_the_server_diverges_twice_end_the_run(tmp_path):
    side = server_side(COPIES, tmp_path)
    host: Host = side.host
    host._examine(side.diverged("train_loss is nan"))
    assert host.expected.examines_all
    with pytest.raises(RunFailed, match="train_loss is nan"):
        host._examine(side.diverged("train_loss is nan"))


@pytest.mark.parametrize(
    ("how", "why"), [("infinite", "values of client1 are not finite ('smashed' in a message"), ("diverging", "lower lr")]
)
def test_infinity_under_mpi_ends_the_run_with_the_client_or_the_remedy(how, why, tmp_path):
    done = launch(3, "tests/broken_rank.py", str(tmp_path / "out"), how, timeout=240)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
