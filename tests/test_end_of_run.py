"""The end of a run: every client gets its final weights, whenever it comes, and no server makes a client wait for ever."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from conftest import equal
from network import COPIES, Dead, Net, until
from safetensors.torch import load_file, save_file

from cutlayer.cli import main
from cutlayer.errors import BadInput, RunFailed
from cutlayer.final_weights import pending_clients, stored_weights
from cutlayer.join import join
from cutlayer.recipes.toml import to_toml
from cutlayer.run import data_of, parts_of
from cutlayer.run_folder import save_weights
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.transports.grpc_common import METHOD
from cutlayer.transports.grpc_server import Gate
from cutlayer.transports.session import control
from cutlayer.wire import Message, pack

pytestmark = pytest.mark.usefixtures("no_figures")


def weights(folder, name="bottom"):
    return load_file(folder / "weights" / f"{name}.safetensors")


@pytest.fixture
def dies_at_the_end(monkeypatch):
    """Let client1 die after its last turn, before it says goodbye; return a list that stops that when it is emptied."""
    bye, armed = NetworkLine.bye, [True]

    def dying(line, figures):
        if line.name == "client1" and armed:
            raise Dead
        bye(line, figures)

    monkeypatch.setattr(NetworkLine, "bye", dying)
    return armed


def train_until_client1_has_left(out):
    """Run to the end of training, where client1 dies and is given up; return the server, which offers the weights."""
    net = Net(COPIES, out, patience=60.0)
    net.join("client0")
    net.join("client1").join(60)
    host = net.serving.host
    until(lambda: host.over and host.there == {0}, 60)
    host.waits.away[1] = 61.0
    until(lambda: (out / "server" / "summary.json").exists(), 60)
    return net


def test_a_client_killed_after_its_last_turn_gets_its_weights(tmp_path, dies_at_the_end):
    net = train_until_client1_has_left(tmp_path)
    dies_at_the_end.clear()
    net.join("client1")
    result = net.wait()
    for name in ("client0", "client1"):
        assert equal(result.modules["bottom"], weights(tmp_path / name))
        assert not (tmp_path / name / "marks").exists()
    assert pending_clients(tmp_path / "server", ["client0", "client1"]) == {}


def test_a_finished_server_offers_the_weights_again_and_a_finished_client_says_so(tmp_path, dies_at_the_end, capsys):
    net = train_until_client1_has_left(tmp_path)
    until(lambda: list(pending_clients(tmp_path / "server", [])) == ["client1"], 60)
    net.serving.stop()
    net.wait()
    assert net.said("client1 has not saved its final weights; they are in")
    dies_at_the_end.clear()
    again = Net(COPIES, tmp_path, patience=60.0)
    until(lambda: again.said("training is finished; offering the final weights to client1 until nothing moves for 60 s"))
    again.join("client1")
    result = again.wait()
    assert result.summary["rounds"] == COPIES.rounds
    assert equal(weights(tmp_path / "server"), weights(tmp_path / "client1"))
    toml = tmp_path / "recipe.toml"
    toml.write_text(to_toml(COPIES.flat()))
    # now all have them: neither end needs the other one
    assert main(["serve", str(toml), "--insecure", "--listen", "127.0.0.1:0", "--out", str(tmp_path / "server")]) == 0
    words = ["join", str(toml), "--insecure", "--server", "127.0.0.1:1", "--as", "client1", "--out", str(tmp_path / "client1")]
    assert main(words) == 0
    assert "training is finished; its weights are in" in " ".join(capsys.readouterr().out.split())


def test_a_client_that_died_when_it_had_its_weights_is_waited_for_until_it_has_saved_them(tmp_path, monkeypatch):
    armed = [True]

    def dying(modules, folder):
        if folder.parent.name == "client1" and armed:
            armed.clear()
            raise Dead
        save_weights(modules, folder)

    monkeypatch.setattr("cutlayer.join.save_weights", dying)
    net = Net(COPIES, tmp_path, patience=60.0)
    net.join("client0")
    net.join("client1").join(60)
    assert net.server.is_alive()
    net.join("client1")
    assert equal(net.wait().modules["bottom"], weights(tmp_path / "client1"))


def test_each_client_is_offered_its_own_modules_alone(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("bottom-0", "bottom-2", "tail-0", "tail-2", "top-0", "top-2", "top"):
        save_file({"w": torch.tensor([float(name[-1]) if name[-1].isdigit() else -1.0])}, folder / f"{name}.safetensors")
    assert {name: float(t) for name, t in stored_weights(folder, 2).items()} == {"bottom.w": 2.0, "tail.w": 2.0}
    assert float(stored_weights(folder, 1)["bottom.w"]) == 0.0  # it had left, and gets those of the first
    (tmp_path / "pending_clients.json").write_text(json.dumps({"alice": "x"}))
    with pytest.raises(BadInput, match="is damaged; delete it"):
        pending_clients(tmp_path, [])


class OneWord:
    """A server that lets clients in, and answers that they are ready with one thing, or with nothing."""

    def __init__(self, say):
        self.gate = Gate("127.0.0.1:0", ["client0", "client1"], lambda name, hello: None, tls=None)
        self.say, self.going = say, True
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while self.going:
            try:
                event = self.gate.events.get(timeout=0.05)
            except Exception:
                continue
            if event.received is not None:
                if event.received.told.get("kind") == "ready":
                    self.say(self.gate, event.client)
                if event.received.told.get("kind") == "saved":
                    self.gate.tell_all(kind="end")
                event.session.take(event.received)

    def __enter__(self):
        return f"127.0.0.1:{self.gate.port}"

    def __exit__(self, *_):
        self.going = False
        self.thread.join()
        self.gate.close(0.1)


def final(gate, k):
    bottom = parts_of(COPIES, data_of(COPIES)).bottom
    tensors = {f"weights/bottom.{name}": torch.full_like(tensor, 2) for name, tensor in bottom.state_dict().items()}
    gate.post(k, pack(Message("final", tensors, client=k), {}))


def test_final_weights_before_any_start_are_saved(tmp_path):
    with OneWord(final) as server:
        found = join(COPIES, tmp_path / "out", server=server, name="client0", patience=10.0)
    assert found == tmp_path / "out" / "weights"
    assert all((tensor == 2).all() for tensor in weights(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"kind": "end"}, "training is over, and it has sent no final weights"),
        ({"kind": "stop", "why": "it broke"}, "it broke"),
    ],
    ids=["end", "stop"],
)
def test_an_end_before_any_start_ends_a_client_in_one_line(told, why, tmp_path):
    with OneWord(lambda gate, k: gate.tell_all(**told)) as server, pytest.raises(RunFailed, match=why) as error:
        join(COPIES, tmp_path / "out", server=server, name="client0", patience=10.0)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "weights").exists()


class Mute:
    """A server that accepts connections and says nothing, or welcomes each one and closes it at once."""

    def __init__(self, answer):
        self.server = grpc.server(ThreadPoolExecutor(8))
        handler = grpc.stream_stream_rpc_method_handler(answer)
        service, method = METHOD[1:].split("/")
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def __enter__(self):
        return f"127.0.0.1:{self.port}"

    def __exit__(self, *_):
        self.server.stop(0)


def silent(requests, context):
    done = threading.Event()
    context.add_callback(done.set)
    done.wait(30)
    yield from ()


def flapping(requests, context):
    next(requests)
    yield control(kind="welcome", client=0, received=0, fresh=True)


def use(line):
    line.connect()
    line.hello(lambda: [])
    line.receive()


@pytest.mark.parametrize("answer", [silent, flapping])
def test_patience_bounds_the_wait_for_a_server_that_is_there_and_of_no_use(answer, tmp_path):
    with Mute(answer) as server:
        line = NetworkLine(server, "client0", {}, tls=None, patience=0.5)
        try:
            with pytest.raises(RunFailed, match=r"has been away for 0\.5 s"):
                use(line)
        finally:
            line.close()


def test_a_server_that_waits_for_others_is_not_away(tmp_path):
    net = Net(COPIES, tmp_path, start_timeout=30.0)
    net.join("client0", patience=0.3, keepalive_s=0.2)
    until(lambda: net.said("client0 is here"))
    thread = net.threads[0]
    thread.join(1.0)
    assert thread.is_alive()
    net.join("client1")
    net.wait()
