"""A server and its clients over real connections: who is let in, what broken lines and dead parties cost, and what strangers can do."""

import io
import json
import math
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import nullcontext, suppress
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from across import BASE, joining, over_grpc
from conftest import ROOT, equal
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from cutlayer import checkpoint
from cutlayer.certs import Authority, check, demo
from cutlayer.cli import main
from cutlayer.data.partition import split
from cutlayer.errors import BadInput, RunFailed
from cutlayer.handshake import about, refusal, warning
from cutlayer.join import join
from cutlayer.live import Live, endpoint
from cutlayer.meter import Meter
from cutlayer.predict import Answering, Owner, Remote
from cutlayer.recipes.recipe import make
from cutlayer.recipes.toml import read, to_toml
from cutlayer.run import data_of, parts_of, run_recipe, task_of
from cutlayer.serve import Serving, figures
from cutlayer.sides import ServerSide, member
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.grpc_common import PROTOCOL, Tls, check_address
from cutlayer.transports.grpc_server import Gate
from cutlayer.transports.member import Start, told_to_start
from cutlayer.transports.session import FRAME, WINDOW_BYTES, control, read_control
from cutlayer.wire import Coded, Message, Packed, loads, pack

pytestmark = pytest.mark.usefixtures("no_figures")
RELAY, COPIES = make({**BASE, "scheme": "vanilla"}), make({**BASE, "scheme": "splitfed_v1"})


class Dead(BaseException):
    """A client's process is gone."""


class Net:
    """A server in a thread, and clients in threads that may die after some batches and come back."""

    def __init__(self, recipe, out, **how):
        self.recipe, self.out, self.lines, self.result, self.error = recipe, out, [], None, None
        self.serving = Serving(recipe, out / "server", listen="127.0.0.1:0", say=self.lines.append, **how)
        self.port = self.serving.gate.port
        self.threads, self.failed = [], {}
        self.server = threading.Thread(target=self._serve)
        self.server.start()

    def _serve(self):
        try:
            self.result = self.serving.run()
        except Exception as error:
            self.error = error

    def join(self, name, dies_after=None, port=None, slow=0.0, **how):
        """Start a client; it dies after so many batches, each of which takes `slow` seconds more."""
        seen = 0

        def tick():
            nonlocal seen
            seen += 1
            time.sleep(slow)
            if dies_after is not None and seen > dies_after:
                raise Dead

        def client():
            try:
                join(
                    how.pop("recipe", self.recipe), self.out / name, server=f"127.0.0.1:{port or self.port}", name=name, tick=tick,
                    **{"patience": 15.0, "say": self.lines.append, **how},
                )  # fmt: skip
            except Dead:
                pass
            except Exception as error:
                self.failed[name] = error

        thread = threading.Thread(target=client)
        thread.start()
        self.threads.append(thread)
        return thread

    def wait(self, timeout=60):
        """Wait for the end and return the result."""
        self.server.join(timeout)
        assert not self.server.is_alive(), self.lines
        for thread in self.threads:
            thread.join(timeout)
        if self.error:
            raise self.error
        assert not self.failed, self.failed
        return self.result

    def said(self, text):
        return any(text in line for line in self.lines)


def until(true, timeout=15.0):
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


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
    assert not net.said("no connection")
    assert not net.said("again")


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


def test_three_processes_do_what_the_page_says(tmp_path):
    page = (ROOT / "docs" / "deployment.md").read_text()
    block = next(body for body in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "certs demo" in body)
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.startswith("cutlayer")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    less = ["--rounds", "1", "--warmup-rounds", "0", "--num-train", "256", "--model", "resnet8"]
    certs, *parties = [[word.replace(":7000", f":{port}") for word in words[1:]] for words in lines]
    start = [sys.executable, "-m", "cutlayer.cli"]
    how = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    assert subprocess.run([*start, *certs], check=False, **how).returncode == 0
    running = [subprocess.Popen([*start, *words, *less], **how) for words in parties]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert "alice is here with 128 samples" in said[0]
    assert "weights: " in said[0]
    assert all("trained parts: " in words for words in said[1:])
    weights = [sorted(tmp_path.glob(f"runs/*-{who}/weights/bottom.safetensors")) for who in ("server", "alice", "bob")]
    assert weights[0][0].read_bytes() == weights[1][0].read_bytes() == weights[2][0].read_bytes()
    # and the answers of bottom here and top there are those of the whole network
    serve, join_words = parties[0], parties[1]
    answering = subprocess.Popen([*start, *serve, *less, "--predict"], **how)
    try:
        flags = [*join_words[2:], *less, "--weights", str(weights[1][0].parent)]
        done = subprocess.run([*start, "predict", "demo", *flags], check=False, timeout=120, **how)
    finally:
        answering.send_signal(signal.SIGINT)
        words = answering.communicate(timeout=30)[0]
    assert done.returncode == 0, done.stdout
    assert "360 samples were answered" in words
    assert answering.returncode == 0
    summary = json.loads(weights[0][0].parent.with_name("summary.json").read_text())
    assert f"accuracy {summary['accuracy_final']:.4f}" in done.stdout
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 360
    # without the server, only what --local says
    flags += ["--patience", "1"]
    alone = subprocess.run([*start, "predict", "demo", *flags], check=False, timeout=120, **how)
    assert alone.returncode == 1
    assert "has been away for 1 s" in alone.stdout
    local = subprocess.run([*start, "predict", "demo", *flags, "--local"], check=False, timeout=120, **how)
    assert local.returncode == 2
    assert "needs an auxiliary head" in local.stdout


def test_local_answers_are_those_of_the_auxiliary_head_and_it_is_said(tmp_path):
    from cutlayer.predict import predict

    recipe = make({**BASE, "scheme": "locsplitfed", "rounds": 1})
    result, _ = over_grpc(recipe, tmp_path)
    said = []
    for server, why in (("127.0.0.1:1", "has been away for"), (None, "no server is named")):
        answers, found = predict(
            recipe,
            tmp_path / "client0" / "weights",
            server=server,
            name="client0",
            local=True,
            patience=0.5,
            say=said.append,
        )
        assert found["accuracy"] == pytest.approx(result.records[-1]["auxiliary_accuracy"])
        assert said[-1].endswith("these are the answers of the auxiliary head, not of the whole network")
        assert why in said[-1]
        assert answers.outputs.shape == (16, 10)


def test_answers_are_classes_where_outputs_are_logits(tmp_path):
    from cutlayer.predict import Answers, classes, write
    from cutlayer.task import Task

    page = tmp_path / "answers.csv"
    logits = torch.tensor([[[0.0, 9.0], [1.0, 2.0], [0.5, 3.0]], [[4.0, 0.0], [0.0, 0.0], [5.0, 1.0]]])  # (N, C, T)
    write(Answers(logits, classes(Task(), logits)), page)
    assert [line.split(",")[:3] for line in page.read_text().splitlines()] == [
        ["sample", "answer", "output0"],
        ["0", "1 0", "0"],
        ["1", "2 2", "4"],
    ]
    write(Answers(logits[:, :, 1], classes(Task(), logits[:, :, 1])), page)
    assert page.read_text().splitlines()[1] == "0,0,9,2,3"
    regression = Task(lambda output, y: (output - y).square().mean(), {"error": lambda output, y: 0.0})
    write(Answers(logits[:, :, 1], classes(regression, logits[:, :, 1])), page)
    assert page.read_text().splitlines()[:2] == ["sample,output0,output1,output2", "0,9,2,3"]


def test_a_server_shows_its_clients_and_serves_the_figures(tmp_path):
    live = Live()
    net = Net(COPIES, tmp_path, watch=live)
    pages = endpoint(live, 0)
    where = f"http://127.0.0.1:{pages.server_address[1]}"
    net.join("client0")
    until(lambda: live.latest and live.latest["clients"][0]["state"] == "waiting")
    with urllib.request.urlopen(f"{where}/status.json") as page:
        seen = json.load(page)
    assert seen["clients"][1]["state"] == "away"
    with urllib.request.urlopen(f"{where}/metrics") as page:
        assert 'cutlayer_client_here{client="client0"} 1' in page.read().decode()
    with pytest.raises(urllib.error.HTTPError), urllib.request.urlopen(f"{where}/elsewhere"):
        pass
    net.join("client1")
    net.wait()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(live.table())
    assert "client1" in console.export_text()
    with pytest.raises(BadInput, match="--status-port"):
        endpoint(live, pages.server_address[1])
    pages.shutdown()


def test_ctrl_c_at_the_server_says_how_to_go_on_and_that_goes_on(tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 40})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    toml = tmp_path / "recipe.toml"
    toml.write_text(to_toml(recipe.flat()))
    words = [sys.executable, "-m", "cutlayer.cli", "serve", str(toml), "--insecure", f"--listen=127.0.0.1:{port}"]
    words.append(f"--out={tmp_path / 'server'}")
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    server = subprocess.Popen(words, **how)
    threads, failed = joining(recipe, tmp_path, ("client0", "client1"), port, 60.0)
    until(lambda: len(list((tmp_path / "server" / "marks").glob("[!.]*"))) == 2, 60)
    server.send_signal(signal.SIGINT)
    said, _ = server.communicate(timeout=30)
    assert server.returncode == 130, said
    assert "the same command with --resume goes on from the last mark" in " ".join(said.split())
    assert "Traceback" not in said
    done = subprocess.run([*words, "--resume"], timeout=120, check=False, **how)
    for thread in threads:
        thread.join(30)
    assert done.returncode == 0, done.stdout
    assert not failed
    whole = run_recipe(recipe)
    assert equal(whole.modules["top"], load_file(tmp_path / "server" / "weights" / "top.safetensors"))
    assert not list(tmp_path.glob("*/marks"))
    wrong = subprocess.run([*words[:-1], f"--out={tmp_path / 'nothing'}", "--resume"], timeout=60, check=False, **how)
    assert wrong.returncode == 2
    assert "holds no mark of a stopped run" in wrong.stdout


def test_what_decides_bits_is_compared_and_told():
    mine = about(COPIES)
    assert warning(mine, mine) is None
    assert "computes with torch '1.0' (here" in warning(mine, {**mine, "torch": "1.0"})
    why = refusal(mine["recipe"], {**mine["recipe"], "lr": 0.5})
    assert why == "the recipes differ: lr = 0.05 at the server, 0.5 at this client; both ends need the same recipe"
    assert refusal(mine["recipe"], "nonsense") == "this hello has no recipe"


def test_a_question_that_breaks_the_top_turns_away_who_asked_it(tmp_path, monkeypatch):
    over_grpc(COPIES, tmp_path)
    recipe, stop = make({**COPIES.flat(), "transport": "grpc"}), threading.Event()
    weights = tmp_path / "server" / "weights"
    answering = Answering(recipe, weights, listen="127.0.0.1:0", names=["client0", "client1"], tls=None)
    forward = answering.top.forward
    monkeypatch.setattr(answering.top, "forward", lambda z: forward(z) if len(z) > 1 else 1 // 0)
    serving = threading.Thread(target=answering.run, args=(stop.is_set,))
    serving.start()
    lines = [
        NetworkLine(f"127.0.0.1:{answering.gate.port}", name, about(recipe), tls=None, patience=20.0)
        for name in ("client0", "client1")
    ]
    owner = Owner(recipe, tmp_path / "client0" / "weights")
    batch = next(owner.batches(owner.data.test))
    with pytest.raises(BadInput, match="this top cannot take that"):
        owner.outputs(batch.split(1)[0], Remote(lines[0]))
    assert len(owner.outputs(batch, Remote(lines[1]))) == len(batch.y)
    stop.set()
    serving.join(30)
    for line in lines:
        line.close()


def test_a_prediction_is_asked_again_of_a_server_that_was_started_again(tmp_path):
    result, _ = over_grpc(COPIES, tmp_path)
    weights, stop = tmp_path / "server" / "weights", threading.Event()
    recipe = make({**COPIES.flat(), "transport": "grpc"})
    answering = Answering(recipe, weights, listen="127.0.0.1:0", names=["client0"], tls=None)
    port = answering.gate.port
    line = NetworkLine(f"127.0.0.1:{port}", "client0", about(recipe), tls=None, patience=20.0)
    owner, remote = Owner(recipe, tmp_path / "client0" / "weights"), Remote(line)
    answering.gate.close(0.1)  # before it has answered anything
    found = []
    batch = next(owner.batches(owner.data.test))
    asking = threading.Thread(target=lambda: found.append(owner.outputs(batch, remote)))
    asking.start()
    again = Answering(recipe, weights, listen=f"127.0.0.1:{port}", names=["client0"], tls=None)
    serving = threading.Thread(target=again.run, args=(stop.is_set,))
    serving.start()
    asking.join(30)
    stop.set()
    serving.join(30)
    line.close()
    accuracy = (found[0].argmax(1) == batch.y).float().mean()
    assert float(accuracy) == result.summary["accuracy_final"]


# Who is let in

NAMES = ("alice", "bob")


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """Certificates of one authority by party, some that are not in order, and those of a foreign authority."""
    folder = tmp_path_factory.mktemp("certs")
    mine, foreign = Authority(folder / "mine"), Authority(folder / "foreign")
    found = {name: mine.issue(name) for name in ("server", *NAMES, "mallory")}
    late = Authority.issue
    found["foreign"] = foreign.issue("alice")._replace(ca=mine.ca)
    expired = folder / "mine" / "old"
    expired.mkdir()
    mine.folder = expired
    found["expired"] = late(mine, "alice", days=-1.0)
    return found


def refused(net, name, tls, recipe=COPIES, patience=2.0):
    """Return what a party is told that must not come in."""
    line = NetworkLine(
        f"127.0.0.1:{net.port}", name, about(make({**recipe.flat(), "transport": "grpc"})), tls=tls, patience=patience
    )
    try:
        with pytest.raises((BadInput, RunFailed)) as caught:
            line.connect()
        assert "\n" not in str(caught.value)
        return str(caught.value)
    finally:
        line.close()


def test_eight_hostile_cases_over_tls_change_nothing(tls, tmp_path):
    whole = run_recipe(COPIES)
    net = Net(COPIES, tmp_path, tls=tls["server"], names=NAMES)
    before = {name: t.clone() for name, t in net.serving.host.server.top.state_dict().items()}
    for wrong in (tls["foreign"], tls["expired"], None):
        assert "is of another authority or has expired, or one end is plain text" in refused(net, "alice", wrong)
    assert "'mallory' is not a client of this run; those are alice, bob" in refused(net, "mallory", tls["mallory"])
    assert "made out to mallory, not to 'alice'" in refused(net, "alice", tls["mallory"])
    assert "rounds = 2 at the server, 9 at this client" in refused(
        net, "alice", tls["alice"], make({**COPIES.flat(), "rounds": 9})
    )
    net.join("alice", tls=tls["alice"])
    until(lambda: net.said("alice is here"))
    assert "connected already; a second connection" in refused(net, "alice", tls["alice"])
    # one who is let in, and then sends what nobody sends, in another's name
    message = pack(Message("smashed", {"smashed": torch.zeros(1, 4)}, client=0), {})
    bad = NetworkLine(
        f"127.0.0.1:{net.port}", "bob", about(make({**COPIES.flat(), "transport": "grpc"})), tls=tls["bob"], patience=5
    )
    bad.connect()
    bad.session.put(7, [b"no such kind"])
    bad.send(message, 0)
    bad.close()
    assert equal(before, net.serving.host.server.top.state_dict())
    net.join("bob", tls=tls["bob"])
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


def test_a_client_refuses_a_server_that_is_not_made_out_to_be_one(tls, tmp_path):
    net = Net(COPIES, tmp_path, tls=tls["mallory"], names=NAMES, start_timeout=4.0)
    assert "TLS handshake failed" in refused(net, "alice", tls["alice"])
    with pytest.raises(RunFailed, match="missing: alice, bob"):
        net.wait()


def test_a_party_in_the_middle_of_a_run_that_sends_nonsense_is_turned_away_and_undone(tmp_path):
    whole, net = run_recipe(COPIES), Net(COPIES, tmp_path)
    net.join("client0")
    line = NetworkLine(f"127.0.0.1:{net.port}", "client1", about(make({**COPIES.flat(), "transport": "grpc"})), tls=None)
    assert line.connect() == 1
    line.hello(lambda: [])
    start = told_to_start(line)
    shapes = {"smashed": torch.zeros(8, 3, 2, 2), "labels": torch.zeros(8, dtype=torch.long)}
    hello = Message("sync", {}, {"done": 0.0, "version": 0.0, "weight": 9.0, "batches": 3.0, "left": 3.0}, client=1)
    for message in (hello, Message("smashed", shapes, client=1)):
        packed = pack(message, {})
        line.send(type(packed)(packed.message, packed.roles, incarnation=start.incarnation), 0)
    until(lambda: net.said("client1 is turned away"))
    with pytest.raises(BadInput, match="refuses: it sent what this server cannot use"):
        [line.receive() for _ in range(9)]
    line.close()
    net.join("client1")
    result = net.wait()
    assert all(equal(whole.modules[name], result.modules[name]) for name in whole.modules)


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
    net, ready = Net(COPIES, tmp_path), NetworkLine._ready

    def boasting(line):
        line.samples = 2**32
        ready(line)

    monkeypatch.setattr(NetworkLine, "_ready", boasting)
    for name in ("client0", "client1"):
        net.join(name)
    assert net.wait().summary["samples"] == [2**32, 2**32]


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
    for name in ("client0", "client1"):
        net.join(name)
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
    with pytest.raises(OSError, match="No space left"):
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
    numbers = {"done": 1.0, "version": 0.0, "weight": 9.0, "batches": 3.0, "left": 0.0}
    for wrong, why in (
        ({f"optimizer/{name}/momentum_buffer": torch.zeros(3)}, r"is \(3,\)"),
        ({f"optimizer/{name}/exp_avg": mine[name]}, "is no state of an optimizer"),
        ({"optimizer/nothing/momentum_buffer": torch.zeros(3)}, "is no state of an optimizer"),
        (right, None),
    ):
        expected.sent(Message("go", {}, {"return": 1.0}))
        with pytest.raises(BadInput, match=why) if why else nullcontext():
            expected.check(Message("sync", {**weights, **wrong}, numbers))


def test_certificates_say_what_is_wrong_with_them(tls, tmp_path):
    check(tls["alice"], "alice")
    for name, who, why in (
        ("foreign", "alice", "was not issued by the authority"),
        ("alice", "bob", "made out to alice, not to 'bob'"),
        ("expired", "alice", "is valid from"),
    ):
        with pytest.raises(BadInput, match=why):
            check(tls[name], who)
    with pytest.raises(BadInput, match="does not belong to"):
        check(tls["alice"]._replace(key=tls["bob"].key), "alice")
    with pytest.raises(BadInput, match="No such file"):
        check(Tls(tmp_path / "ca", tmp_path / "cert", tmp_path / "key"), "alice")
    names = ["alice", "a.b_c-1", "x" * 64]
    demo(tmp_path / "set", names)
    for name in names:
        check(Tls(*(tmp_path / "set" / file for file in ("ca.pem", f"{name}.pem", f"{name}.key"))), name)
    with pytest.raises(BadInput, match="holds a set of certificates already"):
        demo(tmp_path / "set", ["alice"])
    assert (tmp_path / "set" / "alice.key").stat().st_mode & 0o077 == 0


def test_join_leaves_a_folder_of_another_recipe_as_it_is_and_marks_its_own(tmp_path, capsys):
    result, _ = over_grpc(COPIES, tmp_path)
    other = tmp_path / "client0"
    assert make(read(other / "recipe.toml")).digest() == COPIES.digest()
    checkpoint.save(other / "marks", "1", {"a": 1})
    toml = tmp_path / "recipe.toml"
    toml.write_text(to_toml({**COPIES.flat(), "lr": 0.1}))
    words = ["join", str(toml), "--insecure", "--server", "127.0.0.1:1", "--as", "client0", "--patience", "0.1"]
    assert main([*words, "--out", str(other)]) == 2
    assert "holds another recipe" in capsys.readouterr().err
    assert checkpoint.marks(other / "marks")
    assert equal(result.modules["bottom"], load_file(other / "weights" / "bottom.safetensors"))
    assert main([*words, "--out", str(tmp_path / "new")]) == 1  # nobody is there
    assert not (tmp_path / "new" / "recipe.toml").exists()


def test_serve_shows_no_finished_run_of_another_recipe(tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(to_toml(COPIES.flat()))
    (tmp_path / "summary.json").write_text("{}")
    assert main(["serve", "demo", "--insecure", "--out", str(tmp_path)]) == 2
    assert "holds another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        *((["--clients", clients], "give another") for clients in
          ("ca,bob", "server", "Server", "alice,alice", "Bob,bob", "../esc", ".hidden", "a/b", "ü", "a b", "x" * 65, "bob\n")),
        *((["--days", days], "more than 0 and at most 3650 days") for days in ("-1", "0", "nan", "inf", "1e9")),
    ],
    ids=str,
)  # fmt: skip
def test_a_set_of_certificates_that_would_be_broken_is_not_begun(words, why, tmp_path, capsys):
    assert main(["certs", "demo", str(tmp_path / "set"), *words]) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("nowhere", "write HOST:PORT"),
        ("127.0.0.1:²", "write HOST:PORT"),
        ("0.0.0.0:7000", "plain text is for this machine alone"),
        ("127.example.com:7000", "plain text is for this machine alone"),
        ("127.1:7000", "plain text is for this machine alone"),
        ("localhost.example.com:7000", "plain text is for this machine alone"),
    ],
)
def test_addresses_are_checked(address, why):
    with pytest.raises(BadInput, match=why):
        check_address(address, True, "--listen")


def test_loopback_may_be_written_in_three_ways():
    for address in ("127.0.0.1:7000", "127.8.9.10:7000", "[::1]:7000", "localhost:7000"):
        check_address(address, True, "--listen")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--status-port", "99999"), ("--wait-for", "²"), ("--wait-for", "0"), ("--keepalive", "nan"), ("--keepalive", "inf"),
        ("--keepalive", "0"), ("--patience", "nan"), ("--start-timeout", "-1"),
    ],
)  # fmt: skip
def test_a_flag_of_serve_that_is_no_number_of_its_kind_is_one_line(flag, value, tmp_path, capsys):
    toml = tmp_path / "recipe.toml"
    toml.write_text(to_toml(COPIES.flat()))
    words = ["serve", str(toml), "--insecure", "--listen", "127.0.0.1:0", "--out", str(tmp_path / "out"), f"{flag}={value}"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"cutlayer: {flag} ")
    assert told.count("\n") == 1


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match="cannot be had"):
        Gate(f"127.0.0.1:{taken.getsockname()[1]}", ["a"], lambda name, hello: None, tls=None)
