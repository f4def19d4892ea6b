"""A malicious server: its client refuses in one line, and keeps its data, its weights and its states."""

import json
import math
from dataclasses import replace

import pytest
import torch
from across import BASE, OPTIONS, over_grpc
from conftest import equal
from network import COPIES, RELAY, Dead, Net

from cutlayer import checkpoint
from cutlayer.client import Client
from cutlayer.data.partition import split
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.run import data_of, parts_of, run_recipe, task_of
from cutlayer.serve import Serving
from cutlayer.sides import member
from cutlayer.transports import grpc_client
from cutlayer.transports.member import Again, Start, read_start
from cutlayer.transports.session import MAX_UNTAKEN, PREFIX, RECORD, Session
from cutlayer.wire import Coded, Message, Packed, pack

pytestmark = pytest.mark.usefixtures("no_figures")
GO = {"stop": 0.0, "round": 0.0, "return": 1.0, "version": 0.0, "pace": 0.0}
NOTHING = torch.empty(0, dtype=torch.uint8)


def client_of(recipe, out, k=0):
    data = data_of(recipe)
    shares = split(data.train, recipe).shares
    return member(recipe, parts_of(recipe, data), task_of(recipe), data.train, shares[k], k, out)


def answer(mine, message, sent=None, codecs=None):
    """Let a client check a reply to what it sent, a sync if nothing is named."""
    mine.checks.begun()
    mine.checks.asked(sent or Message("sync", {}, {"done": 0.0}))
    packed = message if isinstance(message, Packed) else pack(message, {})
    mine.checks.arriving(packed, codecs or {})
    mine.checks.check(replace(packed.message, tensors={role.role: role.parts[0] for role in packed.roles}))


def go(tensors=None, **numbers):
    return Message(
        "go", tensors or {}, {**GO, **{"return" if name == "back" else name: value for name, value in numbers.items()}}
    )


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return client_of(COPIES, tmp_path_factory.mktemp("client"))


SMASHED = Message("smashed", {"smashed": torch.zeros(8, 16, 8, 8), "labels": torch.zeros(8, dtype=torch.long)}, step=3)
REFUSED = {
    "unasked": (Message("cut_grad", {}), None, "kind 'cut_grad' for step 0; one of kind 'go' is due"),
    "labels": (Message("labels", {}), None, "kind 'labels' for step 0"),
    "another step": (replace(go(), step=7), None, "no reply is due for that step"),
    "another client": (replace(go(), client=1), None, "for client 1, and this is client 0"),
    "no number": (go(round=math.nan), None, "round = nan in a message of kind 'go'; only finite"),
    "beyond the end": (go(round=3.0), None, "round = 3; whole numbers from 0 to 2 fit now"),
    "no more rounds": (go(round=2.0, back=0.0), None, "begins a turn of round 2, which this client has finished; training has 2"),
    "half a round": (go(round=0.5), None, "round = 0.5; whole numbers"),
    "pace": (go(pace=-1.0), None, "pace = -1; whole numbers from 0 to 2"),
    "version": (go(version=1e300), None, r"version = 1e\+300"),
    "stop": (go(stop=2.0), None, "stop = 2; whole numbers from 0 to 1"),
    "asks for what is not sent": (go(back=3.0), None, r"\(return = 3\) that this scheme does not send in round 0: there it is 1"),
    "lacks": (Message("go", {}, {"stop": 0.0}), None, "go lacks pace, return, round, version"),
    "other tensors": (go({"labels": torch.zeros(1)}), None, "brings 'labels'; only weights"),
    "a foreign weight": (go({"weights/bottom.x": torch.zeros(1)}), None, "brings some weights, and lacks"),
    "optimizer": (go({"optimizer/bottom.stem.conv.weight/momentum_buffer": torch.zeros(1)}), None, "is no state of an optimizer"),
    "gradient": (Message("cut_grad", {"cut_grad": torch.zeros(8, 3)}, step=3), SMASHED, r"\(8, 3\), and \(8, 16, 8, 8\) fits"),
    "no gradient": (Message("cut_grad", {}, step=3), SMASHED, "brings 'cut_grad' unasked, or lacks it"),
    "codes": (Message("cut_grad", {"cut_grad": torch.zeros(8, 16, 8, 8).int()}, step=3), SMASHED, "of shape"),
    "more gradients": (
        Message("cut_grad", {"cut_grad": torch.zeros(8, 16, 8, 8), "cut_grad/x": torch.zeros(1)}, step=3), SMASHED, "'cut_grad/x' unasked",
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_features_of_another_dtype_are_refused(dtype, tmp_path):
    one = client_of(make({**BASE, "scheme": "u_shaped"}), tmp_path)
    sent = Message("smashed", {"smashed": torch.zeros(8, 16, 8, 8)}, step=3, open=True)
    right = torch.zeros(8, *one.checks.features)
    answer(one, Message("features", {"features": right}, step=3), sent)
    with pytest.raises(BadInput, match=f"the server sent features of {dtype} where features are due"):
        answer(one, Message("features", {"features": right.to(dtype)}, step=3), sent)


@pytest.mark.parametrize(("message", "sent", "why"), REFUSED.values(), ids=REFUSED)
def test_what_no_honest_server_sends_is_refused_in_one_line(message, sent, why, mine):
    with pytest.raises(BadInput, match=why) as error:
        answer(mine, message, sent)
    assert "\n" not in str(error.value)


def weights(mine, **changed):
    tensors = {f"weights/{name}": tensor.clone() for name, tensor in mine.client.weights().items()}
    return tensors | {f"weights/{name}": tensor for name, tensor in changed.items()}


def test_weights_are_this_clients_own_names_shapes_and_dtypes(mine):
    name = "bottom.stem.conv.weight"
    answer(mine, go(weights(mine)))
    for wrong, why in (
        (torch.zeros(3), r"is \(3,\) torch.float32, and this client's"),
        (torch.zeros(16, 1, 3, 3).int(), "torch.int32"),
    ):
        with pytest.raises(BadInput, match=rf"'weights/{name}' .*{why}"):
            answer(mine, go(weights(mine, **{name: wrong})))
    with pytest.raises(BadInput, match=r"weights 'top\.x', which this client does not have"):
        answer(mine, go(weights(mine, **{"top.x": torch.zeros(1)})))
    with pytest.raises(BadInput, match="hold NaN or infinity; nothing was saved"):
        mine.checks.final(Message("final", weights(mine, **{name: torch.full((16, 1, 3, 3), math.nan)})))
    with pytest.raises(BadInput, match="other tensors than weights"):
        mine.checks.final(Message("final", {"labels": torch.zeros(1)}))


def test_an_endless_go_is_refused(mine):
    client = mine.client
    before = client.state()
    answer(mine, go())
    client.step = mine.checks.per_round
    answer(mine, go())  # a hello at the end of a round's batches, as after a checkpoint there
    with pytest.raises(BadInput, match="begins a turn of round 0, which this client has finished"):
        answer(mine, go(), Message("sync", {}, {"done": 1.0}))
    client.round, client.step = 1, 0
    with pytest.raises(BadInput, match="round = 0; whole numbers from 1 to 2"):
        answer(mine, go())
    client.load(before)


@pytest.mark.parametrize(
    ("fields", "back", "legal"),
    [
        ({"scheme": "local_only"}, 1.0, 2.0), ({"scheme": "splitfed_v3"}, 1.0, 2.0), ({"scheme": "vanilla"}, 2.0, 1.0),
        ({"scheme": "splitfed_v1", "batch_norm": "local"}, 2.0, 3.0), ({"schedule": "asynchronous"}, 0.0, 1.0),
    ],
    ids=str,
)  # fmt: skip
def test_a_scheme_that_keeps_weights_at_home_refuses_a_server_that_asks_for_them(fields, back, legal, tmp_path):
    one = client_of(make({**BASE, **fields}), tmp_path)
    answer(one, go(back=legal))
    with pytest.raises(BadInput, match="asks for weights"):
        answer(one, go(back=back))


def test_few_bytes_that_stand_for_many_are_refused_before_they_are_decoded(tmp_path):
    one = client_of(make({**BASE, "codec": {"cut_grad": "top_k@0.1"}}), tmp_path)
    parts = (torch.empty((1, 1 << 27, 0), dtype=torch.uint8), torch.zeros(1), NOTHING)
    with pytest.raises(BadInput, match=r"of shape \(1, 134217728\), and \(8, 16, 8, 8\) fits"):
        answer(one, Packed(Message("cut_grad", step=3), (Coded("cut_grad", True, parts),)), SMASHED, one.codecs)


def test_the_size_of_a_message_is_bounded_by_what_may_come(mine):
    session = Session()
    session.max_message = lambda: mine.checks.largest
    assert mine.checks.largest < 1 << 24
    with pytest.raises(BadInput, match=f"a message of {1 << 24} bytes comes, and no message of this run has more than"):
        session.feed(session.attach(0), RECORD.pack(1, 1, 0, 1 << 24) + bytes(PREFIX.size))


@pytest.mark.parametrize(
    "told", [{}, {"incarnation": 1}, {"incarnation": -1, "label": 0}, {"incarnation": 1, "label": 2**80}, {"label": "x"}]
)
def test_a_malformed_start_is_one_line(told):
    with pytest.raises(BadInput, match="a start has incarnation"):
        read_start(told)


TELLS = {
    "unknown": ({"kind": "labels"}, "a control record of kind 'labels'"),
    "none": ({}, "a control record of kind None"),
    "start": ({"kind": "start"}, "a start has incarnation None"),
    "no state": ({"kind": "start", "incarnation": 7, "label": 9}, "has not the state that the server asks for"),
}


@pytest.mark.parametrize(("told", "why"), TELLS.values(), ids=TELLS)
def test_a_malformed_control_record_ends_a_client_and_its_states_stay(told, why, tmp_path, monkeypatch):
    monkeypatch.setattr(Serving, "_ready", lambda serving, k, ready: serving.gate.peers[k].session.tell(**told))
    checkpoint.save(tmp_path / "client0" / "marks", f"{1:020d}", {"a": 1}, 4)
    net = Net(COPIES, tmp_path)
    net.join("client0").join(60)
    net.serving.start_timeout = 0.0
    net.server.join(60)
    error = net.failed.pop("client0")
    assert why in str(error)
    assert "\n" not in str(error)
    assert checkpoint.marks(tmp_path / "client0" / "marks")


def test_an_endless_row_of_starts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cutlayer.transports.member.MAX_RETURNS", 20)
    client, starts = client_of(COPIES, tmp_path), 0

    class Starting:
        def hello(self, held):
            assert held() == []

        def send(self, packed, label):
            self.receive()

        def receive(self):
            nonlocal starts
            starts += 1
            raise Again(Start(starts, 0))

    with pytest.raises(BadInput, match="back to one of its states 20 times; no server does"):
        client.play(Starting())
    assert starts == 21


def test_a_client_that_refused_goes_on_with_an_honest_server(tmp_path, monkeypatch):
    """A server that lies once about a gradient: the client stops in one line, and the same command goes on to the same weights."""
    whole, net = run_recipe(RELAY), Net(RELAY, tmp_path)
    host, lies = net.serving.host, [True]
    post = host.post

    def lying(k, what):
        if k == 1 and isinstance(what, Packed) and what.message.kind == "cut_grad" and lies:
            lies.clear()
            what = replace(what, roles=(what.roles[0]._replace(parts=(torch.zeros(3),)),))
        post(k, what)

    host.post = lying
    net.join("client0")
    net.join("client1").join(60)
    assert "'cut_grad' of shape (3,)" in str(net.failed.pop("client1"))
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_a_flood_of_messages_is_refused(monkeypatch):
    monkeypatch.setattr(grpc_client, "MAX_UNTAKEN_BYTES", 1 << 10)
    line = grpc_client.NetworkLine.__new__(grpc_client.NetworkLine)
    sender, line.session = Session(), Session()
    line.inbox, line.address = grpc_client.queue.Queue(), "here"
    line.session.attach(0)
    number = sender.attach(0)
    for _ in range(MAX_UNTAKEN + 2):
        sender.put(0, [b"x"])
    stream = sender.records(number)
    records = [next(stream) for _ in range(MAX_UNTAKEN + 2)]
    with pytest.raises(BadInput, match="messages that nobody waits for"):
        [line._put(line.session.feed(line.session.connection, record)) for record in records]


def test_a_client_that_dies_between_its_last_checkpoint_of_a_round_and_its_sync_comes_back(tmp_path, monkeypatch):
    recipe, sync, alive = make({**COPIES.flat(), "checkpoint_every": 3}), Client.sync, [True]

    def dying(client, done, batches):
        if client.id == 1 and done and alive:
            alive.clear()
            raise Dead
        return sync(client, done, batches)

    monkeypatch.setattr(Client, "sync", dying)
    alive.clear()
    whole, net = run_recipe(recipe), Net(recipe, tmp_path)
    alive.append(True)
    net.join("client0")
    net.join("client1").join(60)
    assert not alive
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


HONEST = {
    "tail": {"scheme": "u_shaped"},
    "loss_threshold": {"method": "loss_threshold", "schedule": "relay", **OPTIONS["loss_threshold"], "rounds": 3},
    "fsl_sage": {
        "method": "fsl_sage",
        "schedule": "parallel",
        "server_copies": True,
        "auxiliary": "mlp",
        "auxiliary_width": 8,
        "align_epochs": 2,
    },
    "carry": {"scheme": "vanilla", "hand_over": "carry", "optimizer": "adam", "lr": 0.001},
    "asynchronous": {"schedule": "asynchronous", "merge": "fedbuff", "buffer_size": 2},
    "merge": {"codec": {"smashed": "batch_merge@0.5+uniform8", "cut_grad": "float16"}, "scheme": "vanilla"},
}


@pytest.mark.parametrize("fields", HONEST.values(), ids=HONEST)
def test_an_honest_server_is_refused_by_nobody(fields, tmp_path):
    recipe = make({**BASE, **fields})
    result, _ = over_grpc(recipe, tmp_path)
    if fields.get("schedule") != "asynchronous":
        whole = run_recipe(recipe)
        assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)
    assert json.loads((tmp_path / "server" / "pending_clients.json").read_text()) == {}
