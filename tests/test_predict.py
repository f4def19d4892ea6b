"""Split inference: whose answers they are, and what a question may do."""

import threading

import pytest
import torch
from across import BASE, over_grpc
from network import COPIES

from cutlayer.cli import main
from cutlayer.errors import BadInput
from cutlayer.handshake import about
from cutlayer.predict import Answering, Answers, Owner, Remote, classes, load_into, predict, write
from cutlayer.recipes.recipe import make
from cutlayer.run import parts_of
from cutlayer.task import Task, accuracy
from cutlayer.transports.grpc_client import NetworkLine
from cutlayer.wire import Message, pack

pytestmark = pytest.mark.usefixtures("no_figures")


def remote(owner, line):
    """Return an owner's way to the top over a line."""
    return Remote(line, owner.task.layouts["features"])


def test_local_answers_are_those_of_the_auxiliary_head_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("cutlayer.predict.BATCH", 5)  # of 16 samples, so that the last one is smaller
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


def test_an_ensemble_is_the_network_with_a_quarter_of_its_heads_log_probabilities(tmp_path):
    recipe = make({**BASE, "scheme": "locsplitfed", "rounds": 1})
    result, _ = over_grpc(recipe, tmp_path)
    weights = tmp_path / "client0" / "weights"
    owner = Owner(recipe, weights)
    logits = torch.randn(16, 10) / 100
    (batch,) = owner.batches(owner.data.test)
    own = owner.outputs(batch, None).log_softmax(1)
    together = owner.outputs(batch, lambda z, num_samples: logits, together=True)
    torch.testing.assert_close(together, logits.log_softmax(1) + own / 4)
    assert not torch.equal(together.argmax(1), logits.argmax(1))
    top = load_into(parts_of(recipe, owner.data).top, tmp_path / "server" / "weights" / "top.safetensors")
    answers = owner.outputs(batch, lambda z, num_samples: top(z.main), together=True)
    assert accuracy(answers, batch.y) == pytest.approx(result.records[-1]["ensemble_accuracy"])


def test_an_ensemble_needs_a_head_and_classes(tmp_path, monkeypatch):
    recipe = make({**BASE, "scheme": "vanilla", "rounds": 1})
    over_grpc(recipe, tmp_path)
    with pytest.raises(BadInput, match="--ensemble needs an auxiliary head"):
        predict(recipe, tmp_path / "client0" / "weights", server=None, name="client0", together=True)
    local = make({**BASE, "scheme": "locsplitfed", "rounds": 1})
    over_grpc(local, tmp_path / "local")
    with pytest.raises(BadInput, match="which --server gives"):
        predict(local, tmp_path / "local" / "client0" / "weights", server=None, name="client0", local=True, together=True)
    monkeypatch.setattr(
        "cutlayer.predict.task_of", lambda recipe: Task(loss=lambda output, y: (output[:, 0] - y).square().mean())
    )
    with pytest.raises(BadInput, match="this task is no classification"):
        predict(local, tmp_path / "local" / "client0" / "weights", server=None, name="client0", together=True)


def test_answers_are_classes_where_outputs_are_logits(tmp_path):
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
        owner.outputs(batch.split(1)[0], remote(owner, lines[0]))
    assert len(owner.outputs(batch, remote(owner, lines[1]))) == len(batch.y)
    stop.set()
    serving.join(30)
    for line in lines:
        line.close()


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (
            {"outputs": torch.zeros(15, 10)},
            r"shape \(15, 10\) and torch.float32 for 16 samples; those of two have shape \(2, 10\)",
        ),
        ({"outputs": torch.zeros(16, 10, 1)}, r"outputs of shape \(16, 10, 1\) and torch.float32 for 16 samples"),
        ({"weights/x": torch.zeros(16, 10)}, "sent no outputs for 16 samples"),
        ({"outputs": torch.zeros(16, 100_000)}, "bytes comes, and no message of this run has more than"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_by_who_asked(tensors, why, tmp_path, monkeypatch):
    over_grpc(COPIES, tmp_path)
    recipe, stop = make({**COPIES.flat(), "transport": "grpc"}), threading.Event()
    answering = Answering(recipe, tmp_path / "server" / "weights", listen="127.0.0.1:0", names=["client0"], tls=None)
    lie = lambda k, message: answering.gate.post(k, pack(Message("outputs", tensors, client=k, step=message.step), {}))  # noqa: E731
    monkeypatch.setattr(answering, "_answer", lie)
    serving = threading.Thread(target=answering.run, args=(stop.is_set,))
    serving.start()
    with pytest.raises(BadInput, match=why):
        predict(recipe, tmp_path / "client0" / "weights", server=f"127.0.0.1:{answering.gate.port}", name="client0")
    stop.set()
    serving.join(30)


def test_a_prediction_is_asked_again_of_a_server_that_was_started_again(tmp_path):
    result, _ = over_grpc(COPIES, tmp_path)
    weights, stop = tmp_path / "server" / "weights", threading.Event()
    recipe = make({**COPIES.flat(), "transport": "grpc"})
    answering = Answering(recipe, weights, listen="127.0.0.1:0", names=["client0"], tls=None)
    port = answering.gate.port
    line = NetworkLine(f"127.0.0.1:{port}", "client0", about(recipe), tls=None, patience=20.0)
    owner = Owner(recipe, tmp_path / "client0" / "weights")
    top = remote(owner, line)
    answering.gate.close(0.1)  # before it has answered anything
    found = []
    batch = next(owner.batches(owner.data.test))
    asking = threading.Thread(target=lambda: found.append(owner.outputs(batch, top)))
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


@pytest.mark.parametrize(
    "words", [["--status-port", "7001"], ["--resume"], ["--late-join"], ["--quorum", "2"], ["--wait-for", "1"]]
)
def test_what_is_of_training_is_refused_beside_predictions(words, tmp_path, capsys):
    assert main(["serve", "demo", "--num-clients", "2", "--predict", "--insecure", "--out", str(tmp_path), *words]) == 2
    assert f"--predict beside {words[0]}: that is of training" in capsys.readouterr().err
