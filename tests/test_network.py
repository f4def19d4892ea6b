"""A server and its clients over real connections: what broken lines and dead parties cost."""

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

from cutlayer import checkpoint
from cutlayer.data.partition import split
from cutlayer.errors import RunFailed
from cutlayer.handshake import about
from cutlayer.recipes.recipe import make
from cutlayer.run import data_of, parts_of, run_recipe, task_of
from cutlayer.serve import Serving
from cutlayer.sides import member
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.grpc_common import PROTOCOL
from cutlayer.transports.grpc_server import Gate
from cutlayer.transports.member import Start, told_to_start
from cutlayer.transports.session import FRAME, WINDOW_BYTES, control, read_control
from cutlayer.wire import Message, loads, pack

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize("recipe", [RELAY, COPIES], ids=["relay", "copies"])
@pytest.mark.parametrize("dies_after", [0, 2, 4])
def test_a_client_that_dies_and_returns_changes_no_weight_and_no_byte(recipe, dies_after, tmp_path):
    whole, net = run_recipe(recipe), Net(recipe, tmp_path)
    net.join("client0")
    net.join("client1", dies_after).join()
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)
    payload = {
        (way, role): cell["payload"]
        for way in ("up", "down")
        for role, cell in result.summary["bytes"][way].items()
        if cell["payload"]
    }
    assert payload == {
        (way, role): cell["payload"]
        for way in ("up", "down")
        for role, cell in whole.summary["bytes"][way].items()
        if cell["payload"]
    }


@pytest.mark.parametrize("recipe", [RELAY, COPIES], ids=["relay", "copies"])
def test_states_of_an_earlier_run_are_in_nobodys_way(recipe, tmp_path):
    for n in range(1, 5):  # of a server that had gone back twice
        checkpoint.save(tmp_path / "client1" / "marks", f"{(3 << 32) + n:020d}", {"round": n}, 4)
    whole, net = run_recipe(recipe), Net(recipe, tmp_path)
    net.join("client0")
    net.join("client1", 4).join()
    assert [int(path.name) >> 32 for path in checkpoint.marks(tmp_path / "client1" / "marks")] == [1]
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_no_two_states_of_a_client_have_one_label(tmp_path):
    data, shares = data_of(COPIES), split(data_of(COPIES).train, COPIES).shares
    one, again = (member(COPIES, parts_of(COPIES, data), task_of(COPIES), data.train, shares[0], 0, tmp_path) for _ in range(2))
    one._go_on(Start(1, 0))
    for _ in range(5):
        one._keep()
    again._go_on(Start(1, one.label))  # its process was killed when it had said nothing since the newest mark
    again._keep()
    assert again.label == one.label + 1 == again.held()[-1]
    again._go_on(Start(2, one.label))
    again._keep()
    assert again.held()[-2:] == [one.label, again.label]  # what was given up is gone


def test_what_was_sent_in_vain_is_counted_as_repeated(tmp_path):
    net = Net(COPIES, tmp_path)
    net.join("client0")
    net.join("client1", 2).join()
    net.join("client1")
    result = net.wait()
    assert result.summary["bytes"]["up"]["repeated"]["wire"] > 0
    assert net.said("client1 is back; all go on from mark 0")


def test_relay_passes_the_turn_of_who_left_and_takes_it_back_in_the_next_round(tmp_path):
    recipe = make({**BASE, "scheme": "vanilla", "rounds": 4})
    net = Net(recipe, tmp_path, patience=0.5)
    net.join("client1")
    net.join("client0", 0).join()
    until(lambda: net.said("client0 has been away for 0.5 s; the others go on without it from mark 0"))
    net.join("client0")
    result = net.wait()
    assert len(result.records) == 4
    assert result.summary["samples"] == [22, 22]


def test_quorum_waits_and_says_so(tmp_path):
    net = Net(COPIES, tmp_path, patience=0.3, quorum=2)
    net.join("client0")
    net.join("client1", 1).join()
    until(lambda: net.said("waiting for client1: without it 1 clients are left, and quorum is 2"))
    net.join("client1")
    whole = run_recipe(COPIES)
    assert equal(whole.modules["bottom"], net.wait().modules["bottom"])


def test_the_start_barrier_names_who_is_missing(tmp_path):
    net = Net(COPIES, tmp_path, start_timeout=1.0)
    net.join("client1")
    with pytest.raises(RunFailed, match=r"1 of 2 clients came within 1 s; missing: client0"):
        net.wait()


@pytest.mark.parametrize("late", [True, False])
def test_a_party_never_seen_before_may_join_at_a_round_with_late_join_alone(late, tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 6})
    net = Net(recipe, tmp_path, wait_for=1, late_join=late)
    net.join("client0")
    until(lambda: net.serving.host.begun)
    net.join("client1")
    if late:
        net.wait()
        assert net.said("client1 is here; it takes part from the next round on") or net.serving.host.over
    else:
        with pytest.raises(AssertionError, match="begun without client1, and this server was not started with --late-join"):
            net.wait()


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


def test_the_server_is_started_again_and_clients_come_by_themselves(tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 4})
    whole = run_recipe(recipe)

    class Gone(Exception):
        pass

    def watch(serving):
        if serving.host.server.schedule.round == 2:
            raise Gone

    net = Net(recipe, tmp_path, watch=watch)
    port = net.port
    for name in ("client0", "client1"):
        net.join(name, patience=30.0)
    net.server.join(30)
    assert isinstance(net.error, Gone)
    serving = Serving(recipe, tmp_path / "server", listen=f"127.0.0.1:{port}")
    assert serving.side.newest()[1] >= 2
    result = serving.run()
    for thread in net.threads:
        thread.join(30)
    assert not net.failed
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


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
