"""Lines that break, stand idle or carry too much, between a server and clients that live."""

import socket
import threading
import time
from contextlib import nullcontext, suppress
from unittest.mock import Mock

import pytest
import torch
from across import BASE, over_grpc
from conftest import equal
from network import COPIES, RELAY, Net, until

from cutlayer.errors import BadInput, RunFailed
from cutlayer.handshake import about
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe
from cutlayer.transports import grpc_server
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.grpc_common import PROTOCOL
from cutlayer.transports.grpc_server import Gate
from cutlayer.transports.member import told_to_start
from cutlayer.transports.session import FRAME, WINDOW_BYTES, Session, control, read_control
from cutlayer.wire import Message, loads, pack

pytestmark = pytest.mark.usefixtures("no_figures")


class Proxy:
    """A line that can be cut: forwards a port to another, and breaks every connection when told to."""

    def __init__(self, port):
        self.port_there, self.open, self.shut = port, [], False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                here, _ = self.listener.accept()
                if self.shut:
                    here.close()
                    continue
                there = socket.create_connection(("127.0.0.1", self.port_there))
                self.open += [here, there]
                for a, b in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    def _pump(self, a, b):
        with suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)
        self._end(a, b)

    @staticmethod
    def _end(*sockets):
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self, stay=False):
        """Break all connections; if they are to `stay` broken, take no new ones until the next cut."""
        self.shut = stay
        broken, self.open = self.open, []
        self._end(*broken)


@pytest.mark.parametrize("scheme", ["splitfed_v1", "locsplitfed"])
def test_a_broken_line_only_sends_again_exactly_once(scheme, tmp_path):
    recipe = make({**BASE, "scheme": scheme, "rounds": 5})
    whole, net = run_recipe(recipe), Net(recipe, tmp_path)
    proxy = Proxy(net.port)
    net.join("client0", port=proxy.port)
    net.join("client1")
    for _ in range(4):
        time.sleep(0.25)
        proxy.cut()
    result = net.wait()
    assert net.said("connected to 127.0.0.1") or result is not None
    assert net.serving.host.incarnation == 1  # nobody went back to anything
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)
    assert result.summary["bytes"] == whole.summary["bytes"]


def test_a_line_that_breaks_before_its_client_said_what_it_holds_does_not_begin_the_run(tmp_path):
    net = Net(COPIES, tmp_path)
    proxy = Proxy(net.port)
    line = NetworkLine(f"127.0.0.1:{proxy.port}", "client0", about(net.serving.recipe), tls=None, say=net.lines.append)
    try:
        line.connect()
        proxy.cut()
        until(lambda: net.said("again"))
        net.join("client1")
        until(lambda: 1 in net.serving.host.there)
        assert not net.serving.host.begun
        line.hello(list)
        assert told_to_start(line).incarnation == 1
        with pytest.raises(AssertionError):
            until(line.again.is_set, 0.5)  # one word to start, not two
    finally:
        line.close()
    net.join("client0")
    net.wait()


def test_what_a_client_had_to_send_to_a_server_of_before_is_not_sent_to_one_that_knows_nothing_of_it():
    session = Session()
    before = session.epoch
    assert session.put(FRAME, [b"x"], epoch=before)
    session.reset()  # by the thread that keeps the connection, at any moment
    assert not session.put(FRAME, [b"x"], epoch=before)
    assert not session.last
    assert session.put(FRAME, [b"x"], epoch=session.epoch)


@pytest.mark.parametrize(
    "welcome", [{}, {"client": "x", "received": 0, "fresh": True}, {"client": 0, "received": 7, "fresh": True}]
)
def test_a_server_that_answers_nonsense_is_refused(welcome, monkeypatch):
    gate = Gate("127.0.0.1:0", ["client0"], lambda name, hello: None, tls=None)

    def admit(hello, identity, context):
        raise BadInput

    monkeypatch.setattr(gate, "_admit", admit)
    monkeypatch.setattr(grpc_server, "control", lambda **what: control(kind="welcome", **welcome))
    line = NetworkLine(f"127.0.0.1:{gate.port}", "client0", {}, tls=None, patience=5.0)
    try:
        with pytest.raises(BadInput, match="answers what no server of this version does"):
            line.connect()
    finally:
        line.close()
        gate.close()


def test_a_connection_that_is_gone_before_its_welcome_leaves_nobody_behind():
    gate = Gate("127.0.0.1:0", ["client0"], lambda name, hello: None, tls=None)
    hello = control(kind="hello", name="client0", life="1", received=0, protocol=PROTOCOL)
    try:
        conversation = gate._converse(iter([hello]), Mock())
        assert read_control(next(conversation))["kind"] == "welcome"
        conversation.close()  # gRPC does not ask for a second word of a call that is gone
        until(lambda: not gate.peers[0].alive)
    finally:
        gate.close()


def test_a_client_whose_line_was_broken_while_all_went_back_goes_back_too(tmp_path):
    whole, net = run_recipe(RELAY), Net(RELAY, tmp_path)
    proxy = Proxy(net.port)
    net.join("client0", port=proxy.port)
    dying = net.join("client1", 2, slow=0.5)
    until(lambda: net.serving.host.server.schedule.active == 1)
    proxy.cut(stay=True)
    until(lambda: 0 not in net.serving.host.there)
    dying.join()
    net.join("client1")
    until(lambda: net.serving.host.incarnation == 2)
    proxy.cut()
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_an_idle_connection_is_kept_alive_and_not_opened_anew(tmp_path):
    net = Net(COPIES, tmp_path, keepalive_s=1.0)
    net.join("client0", keepalive_s=1.0)
    time.sleep(4.0)
    net.join("client1", keepalive_s=1.0)
    net.wait()
    assert not net.said("no connection"), net.lines
    assert not net.said("again"), net.lines


@pytest.mark.parametrize("fails", [False, True], ids=["end", "stop"])
def test_a_client_that_is_slow_after_the_last_word_does_not_miss_the_server(fails, tmp_path, monkeypatch):
    leave = NetworkLine.close

    def late(line):
        time.sleep(1.0)
        leave(line)

    def watch(serving):
        if fails and serving.host.server.schedule.active == 1:
            raise RunFailed("no more")

    monkeypatch.setattr(NetworkLine, "close", late)
    net = Net(RELAY, tmp_path)
    net.serving.watch = watch
    net.join("client0")
    net.join("client1")
    with pytest.raises(RunFailed, match="no more") if fails else nullcontext():
        net.wait()
    for thread in net.threads:
        thread.join(15.0)
    assert not net.said("no connection"), net.lines


def test_32_clients_and_every_byte_of_them(tmp_path):
    recipe = make({**BASE, "model": "mlp", "scheme": "splitfed_v1", "num_clients": 32, "num_train": 256, "rounds": 2})
    whole = run_recipe(recipe)
    result, serving = over_grpc(recipe, tmp_path)
    assert result.summary["bytes"] == whole.summary["bytes"]
    assert len(result.summary["bytes"]["client"]) == 32
    assert equal(whole.modules["top"], result.modules["top"])
    assert not serving.gate.events.qsize() or serving.host.done


def test_a_frame_of_300_mb_crosses():
    gate = Gate("127.0.0.1:0", ["client0"], lambda name, hello: None, tls=None)
    line = NetworkLine(f"127.0.0.1:{gate.port}", "client0", {}, tls=None)
    try:
        line.connect()
        sent = torch.arange(75_000_000, dtype=torch.int32)
        line.send(pack(Message("smashed", {"smashed": sent}), {}), 0)
        event = next(e for e in iter(lambda: gate.events.get(timeout=60), None) if e.received is not None)
        assert torch.equal(loads(event.received.frame, checked=False).roles[0].parts[0], sent)
        event.session.take(event.received)
        assert line.session.settled(10)
    finally:
        line.close()
        gate.close()


def test_a_client_that_keeps_to_no_window_is_held_back():
    gate = Gate("127.0.0.1:0", ["client0"], lambda name, hello: None, tls=None)
    line = NetworkLine(f"127.0.0.1:{gate.port}", "client0", {}, tls=None)
    try:
        line.connect()
        for _ in range(40):
            line.session.put(FRAME, [bytes(1 << 20)])
        until(lambda: gate.peers[0].session.untaken >= WINDOW_BYTES)
        time.sleep(0.3)
        assert gate.peers[0].session.untaken < WINDOW_BYTES + (2 << 20)
        taken = 0
        while taken < 40:
            event = gate.events.get(timeout=10)
            if event.received is not None:
                event.session.take(event.received)
                taken += 1
        assert line.session.settled(10)
    finally:
        line.close()
        gate.close()
