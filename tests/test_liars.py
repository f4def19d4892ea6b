"""A client with a certificate that lies: it is turned away, and nobody else."""

import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from across import BASE, over_grpc
from conftest import equal
from network import COPIES, RELAY, Net
from safetensors import SafetensorError

from cutlayer.data.partition import split
from cutlayer.errors import BadInput, RunFailed
from cutlayer.expected import figures
from cutlayer.meter import Meter
from cutlayer.recipes.recipe import make
from cutlayer.run import data_of, parts_of, run_recipe, task_of
from cutlayer.sides import ServerSide
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.wire import Coded, Message, Packed

pytestmark = pytest.mark.usefixtures("no_figures")


def told(lie, when=lambda message: message.is_sync):
    """Return a lie that is told in some messages."""
    return lambda packed: lie(packed) if when(packed.message) else packed


def ends(lie):
    """Return a lie that is told at the ends of turns."""
    return told(lie, lambda message: message.is_sync and not message.is_hello)


def with_numbers(**numbers):
    return lambda packed: replace(packed, message=replace(packed.message, numbers={**packed.message.numbers, **numbers}))


def first_weight(tensor):
    """Return a lie about one tensor of the weights."""
    return ends(lambda packed: replace(packed, roles=(packed.roles[0]._replace(parts=(tensor,)), *packed.roles[1:])))


def no_rows(packed):
    return replace(packed, roles=tuple(role._replace(parts=(role.parts[0][:0],)) for role in packed.roles))


def labels_of(change):
    """Return a lie about the targets of a batch."""
    lie = lambda packed: replace(  # noqa: E731
        packed, roles=tuple(r._replace(parts=(change(r.parts[0]),)) if r.role == "labels" else r for r in packed.roles)
    )
    return told(lie, lambda message: message.kind == "smashed")


LIES = {
    "shape": (first_weight(torch.zeros(3)), r"is \(3,\) torch.float32, and this server's \(16, 1, 3, 3\)"),
    "dtype": (
        first_weight(torch.zeros(16, 1, 3, 3, dtype=torch.int32)),
        "is .* torch.int32, and this server's .* torch.float32",
    ),
    "missing": (ends(lambda packed: replace(packed, roles=packed.roles[1:])), "1 of its weights are missing"),
    "hello": (told(with_numbers(done=1.0)), "it ends a turn that it was not told to begin"),
    "weight": (told(with_numbers(weight=0.0)), "weight 0"),
    "infinite": (told(with_numbers(batches=math.inf)), "batches = inf in a message of kind 'sync'; only finite"),
    "empty": (
        told(no_rows, lambda message: message.kind == "smashed"),
        r"'smashed' of shape \(0, 16, 8, 8\): a batch here is 1 to 8 samples",
    ),
    "kind": (told(lambda packed: replace(packed, message=replace(packed.message, kind="../x"))), "'../x' arrived; this server"),
    "label": (labels_of(lambda y: torch.full_like(y, -100)), "'labels' from -100 to -100; those here lie from 0 to 9"),
    "labels of floats": (labels_of(lambda y: y.float()), "'labels' of torch.float32 .* targets here are integers"),
    "record": (ends(with_numbers(**{"record/round": 1e6})), "record/round is written by the server alone"),
}


@pytest.mark.parametrize(("lie", "why"), LIES.values(), ids=LIES)
def test_who_lies_is_turned_away_and_nobody_else(lie, why, tmp_path, monkeypatch):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    send = NetworkLine.send
    with monkeypatch.context() as patched:
        lied = lambda line, packed, label: send(  # noqa: E731
            line, lie(packed) if line.name == "client1" else packed, label
        )
        patched.setattr(NetworkLine, "send", lied)
        net.join("client0")
        net.join("client1").join(30)
    assert re.search(why, str(net.failed.pop("client1")))
    net.join("client1")
    result = net.wait()
    assert not net.said("client0 is turned away")
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


@pytest.mark.parametrize("samples", [-1, 2**40, True, 1.5, None])
def test_how_many_samples_a_client_has_is_a_count(samples, tmp_path, monkeypatch):
    net = Net(COPIES, tmp_path, start_timeout=1.0)
    monkeypatch.setattr(NetworkLine, "_ready", lambda line: line.session.tell(kind="ready", held=[], samples=samples))
    net.join("client1").join(30)
    assert f"samples = {samples!r} is no count" in str(net.failed.pop("client1"))
    with pytest.raises(RunFailed, match="missing: client0, client1"):
        net.wait()


def test_many_samples_cost_a_server_nothing(tmp_path, monkeypatch):
    most, net, ready, send = 10**9, Net(COPIES, tmp_path), NetworkLine._ready, NetworkLine.send

    def boasting(line):
        line.samples = most
        ready(line)

    def in_syncs(packed):
        batches = most / COPIES.batch_size
        left = 0.0 if packed.message.numbers["done"] else batches
        return with_numbers(weight=float(most), batches=batches, left=left)(packed)

    monkeypatch.setattr(NetworkLine, "_ready", boasting)
    monkeypatch.setattr(NetworkLine, "send", lambda line, packed, label: send(line, told(in_syncs)(packed), label))
    for name in ("client0", "client1"):
        net.join(name)
    assert net.wait().summary["samples"] == [most, most]


@pytest.mark.parametrize("seconds", [10**400, -1.0, math.nan, math.inf, "1"], ids=lambda value: str(value)[:8])
def test_what_a_client_says_it_measured_is_a_figure(seconds):
    told = Meter().state()
    assert figures(json.loads(json.dumps(told)))["seconds"] == {}
    told["seconds"]["wait"] = seconds
    with pytest.raises(BadInput, match=r"seconds wait = .* is no figure of a meter"):
        figures(told)


def test_a_last_word_that_cannot_be_used_leaves_the_others_their_result(tmp_path, monkeypatch):
    whole, net, bye = run_recipe(COPIES), Net(COPIES, tmp_path, patience=0.5), NetworkLine.bye
    lie = lambda line, told: {**told, "seconds": {"wait": 10**400}} if line.name == "client1" else told  # noqa: E731
    monkeypatch.setattr(NetworkLine, "bye", lambda line, told: bye(line, lie(line, told)))
    net.join("client0")
    net.join("client1").join(30)
    assert "is no figure of a meter" in str(net.failed.pop("client1"))  # it gets no weights, and says so
    result = net.wait()
    assert net.said("client1 is turned away: seconds wait = 10")
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_whatever_a_message_raises_turns_away_its_sender_alone(tmp_path, monkeypatch):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    server = net.serving.host.server
    handle = server.handle
    with monkeypatch.context() as patched:
        patched.setattr(server, "handle", lambda message: handle(message) if message.client == 0 or message.is_sync else 1 // 0)
        net.join("client0")
        net.join("client1").join(30)
    assert "cannot use (integer division or modulo by zero)" in str(net.failed.pop("client1"))
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_a_mark_that_cannot_be_written_turns_nobody_away(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("cutlayer.checkpoint.save_file", full)
    net = Net(RELAY, tmp_path)
    monkeypatch.setattr("cutlayer.transports.member.Member._keep", lambda member: None)
    for name in ("client0", "client1"):
        net.join(name, patience=0.5)
    with pytest.raises(SafetensorError, match="No space left"):
        net.wait()
    assert not net.said("is turned away")


def server_side(recipe, out):
    data = data_of(recipe)
    shares = split(data.train, recipe)
    return ServerSide(recipe, parts_of(recipe, data), task_of(recipe), shares, data.train, out, post=lambda k, what: None)


NOTHING = torch.empty(0, dtype=torch.uint8)
FEW_BYTES = {
    "top_k": ("smashed", "top_k@0.1", (torch.empty((1, 1 << 27, 0), dtype=torch.uint8), torch.zeros(1), NOTHING)),
    "rows": ("smashed", "top_k@0.1", (torch.empty((1 << 20, 16, 8, 8, 0), dtype=torch.uint8), torch.zeros(1 << 20), NOTHING)),
    "low_rank": (
        "smashed",
        "low_rank@1",
        (torch.empty((1 << 14, 1 << 14, 0), dtype=torch.uint8), torch.zeros(1 << 14, 1), torch.zeros(1 << 14, 1)),
    ),
    "another": ("smashed/x", "low_rank@1+float16", (torch.empty((9, 9, 0), dtype=torch.uint8), NOTHING, NOTHING)),
    "weights": (
        "weights/bottom.stem.conv.weight",
        "feedback+top_k@0.1",
        (torch.empty((1, 1 << 27, 0), dtype=torch.uint8), torch.zeros(1), NOTHING),
    ),
}


@pytest.mark.parametrize(("role", "codec", "parts"), FEW_BYTES.values(), ids=FEW_BYTES)
def test_few_bytes_that_stand_for_many_are_refused_before_they_are_decoded(role, codec, parts, tmp_path):
    kind = "sync" if role.startswith("weights") else "smashed"
    host = server_side(make({**BASE, "codec": {role.partition("/")[0]: codec}}), tmp_path).host
    packed = Packed(Message(kind), (Coded(role, True, parts),))
    with pytest.raises(BadInput, match=r"a batch here is 1 to 8 samples of|is no weight of this server's"):
        host.expected.arriving(packed, host.link.codecs[0][1])


CODED = [
    {"smashed": "batch_merge@0.5+uniform8"},
    {"smashed": "low_rank@2+float16", "cut_grad": "low_rank@2"},
    {"smashed": "float16+minifloat", "weights": "feedback+top_k@0.2+uniform8"},
]


@pytest.mark.parametrize("codec", CODED, ids=str)
def test_what_codecs_send_fits_what_is_expected(codec, tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "codec": codec})
    whole, (result, _) = run_recipe(recipe), over_grpc(recipe, tmp_path)
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_an_optimizers_state_that_travels_is_that_of_its_parameters(tmp_path):
    side = server_side(make({**BASE, "scheme": "vanilla", "hand_over": "carry", "momentum": 0.9}), tmp_path)
    expected, mine = side.host.expected, side.parties.one.weights()
    weights = {f"weights/{name}": tensor for name, tensor in mine.items()}
    name = next(iter(mine))
    right = {f"optimizer/{name}/momentum_buffer": mine[name]}
    numbers = {"done": 1.0, "version": 0.0, "weight": 22.0, "batches": 3.0, "left": 0.0}
    for wrong, why in (
        ({f"optimizer/{name}/momentum_buffer": torch.zeros(3)}, r"is \(3,\)"),
        ({f"optimizer/{name}/exp_avg": mine[name]}, "is no state of an optimizer"),
        ({"optimizer/nothing/momentum_buffer": torch.zeros(3)}, "is no state of an optimizer"),
        (right, None),
    ):
        expected.sent(Message("go", {}, {"return": 1.0}))
        with pytest.raises(BadInput, match=why) if why else nullcontext():
            expected.check(Message("sync", {**weights, **wrong}, numbers))
