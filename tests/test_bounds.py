"""What one client may cost a server: messages that wait, stored activations, earlier connections."""

import math

import pytest
import torch
from across import BASE, over_grpc
from conftest import equal
from network import COPIES, Net, until

from cutlayer.aligned import Aligned
from cutlayer.errors import BadInput
from cutlayer.handshake import about
from cutlayer.methods.fsl_sage import FslSageOptions
from cutlayer.methods.loss_threshold import LossThresholdOptions
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe
from cutlayer.stored import Stored
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.grpc_server import Gate
from cutlayer.transports.member import told_to_start
from cutlayer.transports.session import CHUNK, CHUNK_BYTES, FRAME, RECORD, WINDOW_BYTES, Session
from cutlayer.wire import Message, pack

pytestmark = pytest.mark.usefixtures("no_figures")
FAST = {
    **BASE, "method": "auxiliary_loss", "auxiliary": "mlp", "auxiliary_width": 8, "schedule": "parallel", "num_train": 64,
    "batch_size": 2,
}  # fmt: skip


@pytest.mark.parametrize("order", ["batch_major", "concatenated"])
def test_a_fast_client_beside_a_slow_one_is_held_back(order, tmp_path, monkeypatch):
    monkeypatch.setattr("cutlayer.transports.session.WINDOW_BYTES", 20_000)
    recipe, most = make({**FAST, "server_order": order}), 0
    net = Net(recipe, tmp_path)
    handle = net.serving.host.server.handle

    def watched(message):
        nonlocal most
        replies = handle(message)
        most = max(most, sum(m.packed.nbytes for m in net.serving.host.server.schedule.held[0]))
        return replies

    net.serving.host.server.handle = watched
    net.join("client0")
    net.join("client1", slow=0.1)
    result, whole = net.wait(), run_recipe(recipe)
    assert 0 < most < 60_000  # a window and the messages at its ends, of 16 batches of 9 KB
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)
    assert not net.serving.unacknowledged


def test_stored_activations_of_a_client_are_bounded(tmp_path):
    stored = Stored(LossThresholdOptions(threshold=0.0))
    packed = pack(Message("smashed", {"smashed": torch.zeros(1000)}), {})
    stored.max_bytes = 2.5 * packed.nbytes
    for client, step in ((0, 0), (0, 1), (1, 0), (0, 1)):  # the last one replaces what is there
        stored._reserve(client, step, packed)
        stored.store[client, step] = packed
    with pytest.raises(BadInput, match=r"its stored activations would take .* are kept"):
        stored._reserve(0, 2, packed)
    net = Net(make({**BASE, "schedule": "parallel", "method": "loss_threshold", "threshold": 10.0}), tmp_path)
    assert net.serving.host.server.part.max_bytes < math.inf
    for name in ("client0", "client1"):
        net.join(name)
    net.wait()


def test_a_message_larger_than_the_recipe_sends_is_refused_before_its_memory_is_taken(tmp_path):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    assert net.serving.gate.max_message < 16 << 20
    line = NetworkLine(f"127.0.0.1:{net.port}", "client1", net.serving.mine, tls=None, patience=20.0)
    line.samples = 22
    line.connect()
    line.hello(lambda: [])
    net.join("client0")
    told_to_start(line)
    with line.session.changed:
        line.session.last += 1
        record = RECORD.pack(CHUNK, line.session.last, 0, net.serving.gate.max_message + 1) + bytes(CHUNK_BYTES)
        line.session.unacked.append((line.session.last, [record]))
        line.session.changed.notify_all()
    with pytest.raises(BadInput, match="bytes comes, and no message of this run has more than"):
        [line.poll() for _ in range(100)]
    line.close()
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


@pytest.mark.parametrize("fields", [{"scheme": "vanilla", "hand_over": "carry", "momentum": 0.9}, {"scheme": "u_shaped"}])
def test_no_honest_message_is_as_large_as_the_bound(fields, tmp_path, monkeypatch):
    put, largest = Session.put, []

    def noted(session, kind, data, *args, **how):
        pieces = [bytes(piece) for piece in data]
        largest.append(sum(map(len, pieces)))
        return put(session, kind, pieces, *args, **how)

    monkeypatch.setattr(Session, "put", noted)
    _, serving = over_grpc(make({**BASE, **fields}), tmp_path)
    assert max(largest) < serving.gate.max_message / 2


def test_a_step_beyond_a_clients_batches_is_refused(tmp_path, monkeypatch):
    net, send = Net(COPIES, tmp_path, start_timeout=30.0), NetworkLine.send
    with monkeypatch.context() as patched:

        def lie(line, packed, label):
            if line.name == "client1" and not packed.message.is_sync:
                packed = pack(Message("smashed", packed.message.tensors, {}, 1, 10**6, "wait"), {})
                packed = type(packed)(packed.message, packed.roles, incarnation=1)
            send(line, packed, label)

        patched.setattr(NetworkLine, "send", lie)
        net.join("client0")
        net.join("client1").join(30)
    assert "step 1000000 in a message of kind 'smashed'; its round has 3 batches" in str(net.failed.pop("client1"))
    net.join("client1")
    net.wait()


def test_earlier_connections_of_a_client_keep_no_memory():
    gate = Gate("127.0.0.1:0", ["a"], lambda name, hello: None, tls=None)
    most = 0
    for _ in range(20):
        line = NetworkLine(f"127.0.0.1:{gate.port}", "a", about(COPIES), tls=None, patience=20.0)
        line.connect()
        session = gate.peers[0].session
        line.session.put(FRAME, [bytes(WINDOW_BYTES)])
        until(lambda session=session: session.untaken > WINDOW_BYTES)
        session.put(FRAME, [bytes(1 << 20)])
        line.session.close()
        line.close()
        until(lambda: not gate.peers[0].alive)
        most = max(most, sum(event.received.nbytes for event in list(gate.events.queue) if event.received))
        sessions = {id(event.session) for event in list(gate.events.queue)}
        assert sessions <= {id(session)}
    assert most <= WINDOW_BYTES
    gate.close(0.0)
    assert not session.unacked


def test_the_memory_of_fsl_sage_is_bounded():
    aligned = Aligned(FslSageOptions(auxiliary="mlp", memory_size=20))
    for _ in range(9):
        aligned.keep(Message("smashed", {"smashed": torch.zeros(8, 3), "labels": torch.zeros(8, dtype=torch.long)}))
    assert len(aligned.memory[0]["smashed"]) == len(aligned.memory[0]["labels"]) == 20
