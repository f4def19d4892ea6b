"""A client that is connected and sends nothing: it is named, and then it has left, as one that is away."""

import json
import urllib.request

import pytest
import torch
from across import BASE
from network import COPIES, RELAY, Net, until
from test_liars import server_side

from cutlayer.errors import BadInput
from cutlayer.live import Live, endpoint, metrics, state
from cutlayer.recipes.recipe import make
from cutlayer.serve import Serving
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.member import told_to_start
from cutlayer.transports.session import CHUNK_BYTES, FRAME, Session
from cutlayer.wire import Message, pack

pytestmark = pytest.mark.usefixtures("no_figures")
HELLO = {"done": 0.0, "version": 0.0, "weight": 22.0, "batches": 3.0, "left": 3.0}


def connect(net, name, say):
    """Connect as a client that has said what it holds and was told to start."""
    line = NetworkLine(f"127.0.0.1:{net.port}", name, net.serving.mine, tls=None, patience=20.0, say=say)
    line.connect()
    line.hello(lambda: [])
    told_to_start(line)
    return line


class Bench:
    """A server's half without a network: what it posts, says and dismisses; `say_hello` lets a client begin its turn."""

    def __init__(self, recipe, out, **how):
        self.posted, self.lines, self.dismissed = [], [], []
        self.host = server_side(recipe, out).host
        self.host.post = lambda k, what: self.posted.append((k, what))
        self.host.say = self.lines.append
        self.host.dismiss = lambda k, why: self.dismissed.append((k, why))
        for name, value in how.items():
            setattr(self.host, name, value)
        for k in range(recipe.num_clients):
            self.host.hello(k, [])
        self.host.begin()

    def frame(self, k, message, incarnation=None):
        packed = pack(message, {})
        self.host.frame(
            k, type(packed)(packed.message, packed.roles, True, incarnation or self.host.incarnation), label=1 + self.host.incarnation
        )  # fmt: skip

    def say_hello(self, k):
        self.frame(k, Message("sync", {}, HELLO, client=k))


def test_a_connected_client_that_sends_nothing_leaves_and_the_others_go_on(tmp_path):
    net = Net(RELAY, tmp_path, turn_timeout=2.0)
    net.join("client1")
    heard = []
    silent = connect(net, "client0", heard.append)
    try:
        until(lambda: net.said("client0 has sent nothing for 2 s; the others go on without it from mark"))
        until(lambda: (tmp_path / "server" / "summary.json").exists(), 60)
    finally:
        silent.close()
    net.serving.stop()  # else it offers the weights to the silent one
    result = net.wait()
    assert len(result.records) == RELAY.rounds
    assert any("it has sent nothing for 2 s, so the others went on without it; it may take part" in line for line in heard)


def test_a_silent_client_that_wakes_up_takes_part_from_the_next_round_on(tmp_path):
    bench = Bench(COPIES, tmp_path, turn_timeout=600.0)
    bench.say_hello(0)
    bench.host.waited(601.0)
    assert bench.host.server.schedule.absent == {0}  # the other one has said nothing either, and somebody has to be left
    bench.host.hello(0, [])
    assert bench.lines[-1] == "client0 is here; it takes part from the next round on"
    assert bench.host.there == {0, 1}


def test_only_who_owes_a_message_is_counted(tmp_path):
    bench = Bench(RELAY, tmp_path, turn_timeout=600.0)
    for k in (0, 1):
        bench.say_hello(k)
    bench.host.waited(599.0)  # client 1 waits for its turn
    assert bench.host.waiting_for() == {0: 599.0}
    bench.host.waited(2.0)
    assert bench.dismissed == [(0, "it has sent nothing for 600 s, so the others went on without it")]
    assert bench.host.server.schedule.absent == {0}
    assert bench.host.there == {1}
    assert bench.lines[-1] == "client0 has sent nothing for 600 s; the others go on without it from mark 0"


def test_bytes_that_move_start_the_count_anew_and_useless_messages_do_not(tmp_path):
    bench = Bench(RELAY, tmp_path, turn_timeout=600.0)
    for k in (0, 1):
        bench.say_hello(k)
    for _ in range(5):
        bench.host.waited(500.0, moved={0})
    assert not bench.dismissed
    bench.frame(0, Message("mark", client=0), incarnation=bench.host.incarnation + 7)  # dropped: of another incarnation
    bench.host.waited(1.0)
    assert [k for k, _ in bench.dismissed] == [0]


def test_to_connect_again_does_not_start_the_count_anew(tmp_path):
    bench = Bench(RELAY, tmp_path, turn_timeout=600.0, patience=120.0)
    for k in (0, 1):
        bench.say_hello(k)
    for seconds in (300.0, 299.0):
        bench.host.waited(seconds)
        bench.host.lost(0)
        bench.host.waited(50.0)
        bench.host.back(0)
    bench.host.waited(2.0)
    assert [k for k, _ in bench.dismissed] == [0]


def test_quorum_keeps_a_silent_client_and_says_so(tmp_path):
    bench = Bench(COPIES, tmp_path, turn_timeout=600.0, quorum=2)
    bench.host.waited(601.0)
    bench.host.waited(601.0)
    assert not bench.dismissed
    assert sum("without it 1 clients are left, and quorum is 2" in line for line in bench.lines) == 1


def test_a_client_that_left_and_is_silent_holds_nobody(tmp_path):
    bench = Bench(RELAY, tmp_path, turn_timeout=600.0, patience=120.0)
    bench.host.lost(0)
    bench.say_hello(1)
    bench.host.waited(121.0)
    bench.host.hello(0, [])  # back, and it never says hello to the schedule
    bench.say_hello(1)
    bench.host.lost(1)
    bench.host.waited(119.0)
    assert bench.host.waits.absence(1) == 119.0


def test_who_waits_for_an_answer_of_the_server_is_not_silent(tmp_path):
    """With batches in a common order, a client may wait for a reply that is due when another one has sent its batch."""
    recipe = make({**BASE, "scheme": "splitfed_v2", "server_order": "batch_major", "method": "synthetic_gradient"})
    bench = Bench(recipe, tmp_path, turn_timeout=600.0)
    for k in (0, 1):
        bench.say_hello(k)
    z = {"smashed": torch.zeros(8, 16, 8, 8), "labels": torch.zeros(8, dtype=torch.long)}
    bench.frame(0, Message("smashed", z, {}, 0, 0, "later"))
    bench.host.waited(100.0)
    assert bench.host.waiting_for() == {1: 100.0}


def test_after_thirty_seconds_the_server_names_whom_it_waits_for_once(tmp_path):
    bench = Bench(COPIES, tmp_path, turn_timeout=600.0, patience=120.0)
    bench.host.lost(1)
    bench.host.ball = set()
    bench.host.waited(31.0)
    bench.host.waited(31.0)
    assert bench.lines.count("waiting for client1: away for 31 s") == 1
    bench = Bench(RELAY, tmp_path / "relay", turn_timeout=600.0)
    for k in (0, 1):
        bench.say_hello(k)
    bench.host.waited(20.0)
    assert not bench.lines
    bench.host.waited(20.0)
    bench.host.waited(20.0)
    assert bench.lines == ["waiting for client0: connected, and silent for 40 s"]


def test_table_page_and_metrics_name_whom_the_server_waits_for(tmp_path, monkeypatch):
    monkeypatch.setattr("cutlayer.transports.waits.NAMED_AFTER_S", 0.3)
    monkeypatch.setattr("cutlayer.live.EVERY_S", 0.05)
    live = Live()
    net = Net(RELAY, tmp_path, watch=live)
    pages = endpoint(live, 0)
    net.join("client1")
    until(lambda: net.said("waiting for client0: not connected"))
    unready = NetworkLine(f"127.0.0.1:{net.port}", "client0", net.serving.mine, tls=None, patience=20.0)
    unready.connect()
    until(lambda: net.said("waiting for client0: connected, and has not said that it is ready"))
    unready.hello(lambda: [])
    until(lambda: live.latest["begun"] and "client0" in live.latest["waiting_for"])
    with urllib.request.urlopen(f"http://127.0.0.1:{pages.server_address[1]}/status.json") as page:
        assert json.load(page)["waiting_for"]["client0"] >= 0.3
    assert 'cutlayer_waiting_seconds{client="client0"} 0.' in metrics(live.latest)
    assert 'cutlayer_waiting_seconds{client="client1"} 0' in metrics(live.latest)
    assert state(net.serving, 0).startswith("silent")
    until(lambda: net.said("waiting for client0: connected, and silent for"))
    unready.close()
    pages.shutdown()
    net.join("client0")
    net.wait()


def test_progress_of_a_line_is_what_moves_for_the_first_time():
    a, b = Session(), Session()
    mine, theirs = a.attach(0), b.attach(0)
    a.put(FRAME, [bytes(3 * CHUNK_BYTES)])
    chunks = [record for record, _ in zip(a.records(mine), range(2), strict=False)]
    before = b.progressed
    b.feed(theirs, chunks[0])
    first = b.progressed
    assert first > before
    theirs = b.attach(0)  # the line breaks, and the message begins again
    b.feed(theirs, chunks[0])
    assert b.progressed == first
    b.feed(theirs, chunks[1])
    assert b.progressed > first


def test_a_chunk_is_as_large_as_it_can_be():
    """Else a byte every few minutes would keep a message on its way for ever."""
    a, b = Session(), Session()
    mine, theirs = a.attach(0), b.attach(0)
    a.put(FRAME, [bytes(2 * CHUNK_BYTES)])
    record = next(a.records(mine))
    with pytest.raises(BadInput, match="chunk"):
        b.feed(theirs, record[:-1])


@pytest.mark.parametrize("seconds", ["nan", "-1"])
def test_a_turn_timeout_is_a_number_of_seconds(seconds, tmp_path):
    with pytest.raises(BadInput, match="--turn-timeout"):
        Serving(COPIES, tmp_path, listen="127.0.0.1:0", turn_timeout=float(seconds))
