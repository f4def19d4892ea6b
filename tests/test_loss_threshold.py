"""T5.*: clients update only when the server's loss has moved, and the server goes on with what it stored."""

import copy
import itertools
import math

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.methods.loss_threshold import LossThresholdOptions
from cutlayer.recipes.recipe import make
from cutlayer.server import Server
from cutlayer.stored import A, B, C, next_state
from cutlayer.streams import stream

pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = {"batch_size": 4, "num_threads": 1, "lr": 0.05}


def states(result):
    return "".join("ABC"[int(record["state"])] for record in result.records)


def run(n=24, num_clients=1, **fields):
    data, parts = small_data(n=n), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.contiguous(data.train, num_clients=num_clients)
    return cl.run(parts, clients, **{"method": "loss_threshold", **QUICK, **fields})


@pytest.mark.parametrize("num_clients", [1, 3])
@pytest.mark.parametrize("schedule", [{}, {"schedule": "parallel", "server_copies": True}, {"schedule": "parallel"}], ids=str)
def test_T5_1_with_a_threshold_that_always_fires_it_is_conventional(num_clients, schedule):
    always = {"threshold": -math.inf, "threshold_rule": "compare_with_previous_a"}
    ours = run(num_clients=num_clients, rounds=4, **always, **schedule)
    plain = run(num_clients=num_clients, rounds=4, method="backprop", **schedule)
    assert states(ours) == "AAAA"
    assert all(equal(ours.modules[name], plain.modules[name]) for name in plain.modules)
    for way in ("up", "down"):
        mine, theirs = (r.summary["bytes"][way] for r in (ours, plain))
        assert {k: v["payload"] for k, v in mine.items()} == {k: v["payload"] for k, v in theirs.items()}


@pytest.mark.parametrize("num_clients", [1, 3])
@pytest.mark.parametrize("schedule", [{}, {"schedule": "parallel", "server_copies": True}, {"schedule": "parallel"}], ids=str)
def test_T5_2_with_one_that_never_fires_clients_move_in_the_first_round_only(num_clients, schedule):
    never = {"threshold": math.inf, **schedule}
    results = {rounds: run(num_clients=num_clients, rounds=rounds, **never) for rounds in (1, 2, 5)}
    assert [states(r) for r in results.values()] == ["A", "AB", "ABCCC"]
    bottoms = [r.modules["bottom"] for r in results.values()]
    assert equal(bottoms[0], bottoms[1])
    assert equal(bottoms[0], bottoms[2])
    tops = [r.modules["top"] for r in results.values()]
    assert not equal(tops[1], tops[2])
    z = 24 * 4 * 6 * 6 * 4
    table = results[5].summary["bytes"]
    assert table["up"]["smashed"]["payload"] == 2 * z
    assert table["down"]["cut_grad"]["payload"] == z


def test_T5_3_a_resting_client_computes_nothing_and_only_sync_and_go_cross(tmp_path):
    result = run(num_clients=2, rounds=5, threshold=math.inf)
    bytes_ = [record["bytes"] for record in result.records]
    assert bytes_[1] == bytes_[2] == bytes_[3] == bytes_[4]
    seconds = [record["seconds"] for record in result.records]
    assert seconds[2]["client_forward"] == seconds[1]["client_forward"]
    assert seconds[1]["client_backward"] == seconds[0]["client_backward"]
    assert seconds[3]["server_backward"] > seconds[2]["server_backward"]


@pytest.mark.parametrize("codec", [{}, {"smashed": "float8"}], ids=["identity", "float8"])
def test_T5_4_training_on_the_store_is_training_on_recomputed_activations(codec):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=1)
    parts = cl.cut(model, "2")
    fields = {**QUICK, "momentum": 0.0, "method": "loss_threshold", "threshold": math.inf, "codec": codec}
    two, four = (cl.run(parts, clients, rounds=rounds, **fields) for rounds in (2, 4))
    from cutlayer import codecs
    from cutlayer.building import batches

    recipe = make({"num_clients": 1, **QUICK})
    bottom, top = copy.deepcopy(two.modules["bottom"]), copy.deepcopy(two.modules["top"])
    (code,) = codecs.build(codec or {"smashed": "identity"}).values()
    optimizer = torch.optim.SGD(top.parameters(), lr=0.05)
    second = list(batches(recipe, clients.source, clients.shares[0], 0)(1, 0))
    for round in (2, 3):
        for i in torch.randperm(6, generator=stream(0, "stored", round=round)).tolist():
            with torch.no_grad():
                z = code.decode(code.encode(bottom(second[i].x)))
            nn.functional.cross_entropy(top(z), second[i].y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert equal(top, four.modules["top"])


GOLDEN = [
    ([2.0, 1.9, 1.5, 1.4, 1.38], {"threshold": 0.3}, "ABCAB"),
    ([2.0, 1.9, 1.5, 1.4, 1.38], {"threshold": 0.3, "threshold_rule": "compare_with_previous_a"}, "AABAB"),
    ([2.0, 2.0, 2.5, 2.4], {"threshold": 0.3}, "ABCC"),
    ([2.0, 2.0, 2.5, 2.4], {"threshold": 0.3, "threshold_of": "change"}, "ABCA"),
    ([2.0, 1.9, 1.5, 1.4], {"threshold": 0.2, "threshold_relative": True}, "ABCA"),
    ([2.0, 1.9, 1.7, 1.65], {"threshold": 0.2, "threshold_relative": True}, "ABCC"),
    ([2.0, math.nan, 2.0], {"threshold": 0.3}, "ABA"),
    ([2.0, 1.0, 0.5, 0.1], {"threshold": math.inf}, "ABCC"),
    ([2.0, 1.0, 0.5, 0.1], {"threshold": math.inf, "threshold_rule": "compare_with_previous_a"}, "ABCC"),
]


@pytest.mark.parametrize(("losses", "options", "wanted"), GOLDEN)
def test_T5_5_states_are_a_function_of_the_losses(losses, options, wanted):
    state, remembered, seen = A, None, ""
    for loss in losses:
        seen += "ABC"[state]
        state, remembered = next_state(state, loss, remembered, LossThresholdOptions(**options))
    assert seen == wanted
    assert (A, B, C) == (0, 1, 2)


def test_T5_6_five_full_rounds_of_two_hundred_at_one_byte_send_a_hundredth():
    ours = run(n=4, rounds=200, threshold=math.inf, max_rest=38, codec={"smashed": "float8", "cut_grad": "float8"})
    plain = run(n=4, rounds=200, method="backprop")
    assert states(ours) == ("AB" + "C" * 38) * 5

    def at_the_cut(result, scales=0):
        table = result.summary["bytes"]
        return table["up"]["smashed"]["payload"] + table["down"]["cut_grad"]["payload"] - scales

    assert at_the_cut(plain) / at_the_cut(ours, scales=15 * 4) == pytest.approx(8 * 200 / (3 * 5))


def test_guards_and_who_is_not_drawn_or_comes_in_a_round_of_rest():
    assert states(run(rounds=8, threshold=math.inf, first_full=2, last_full=1, max_rest=2)) == "AABCCABA"
    # half of four clients are drawn: who has nothing stored is asked for its activations while the others rest
    result = run(n=32, num_clients=4, rounds=8, threshold=math.inf, schedule="parallel", participation=0.5)
    assert states(result) == "ABCCCCCC"
    up = [record["bytes"]["up"]["smashed"] for record in result.records]
    share = 8 * 4 * 6 * 6 * 4
    assert up[:2] == [2 * share, 4 * share]
    assert up[-1] == 6 * share  # the two that were not drawn for B, once
    assert all(later in (earlier, earlier + share, earlier + 2 * share) for earlier, later in itertools.pairwise(up[1:]))


def test_infinite_thresholds_are_written_and_read(tmp_path):
    from cutlayer.recipes import load
    from cutlayer.recipes.toml import to_toml

    recipe = make({"scheme": "async_loss", "threshold": "inf"})
    (tmp_path / "r.toml").write_text(to_toml(recipe.flat()))
    assert load(str(tmp_path / "r.toml")).digest() == recipe.digest()


def test_copies_that_learned_from_the_store_are_averaged_before_they_are_evaluated(monkeypatch):
    apart, ends = [], Server.end_round

    def end_round(self):
        merged, state = self.top.state_dict(), [module.state_dict() for module in self.copies.values()]
        apart.append(
            max(float((merged[k] - one[k]).abs().max()) for one in state for k in merged if merged[k].is_floating_point())
        )
        ends(self)

    monkeypatch.setattr(Server, "end_round", end_round)
    result = run(num_clients=2, rounds=5, schedule="parallel", server_copies=True, threshold=math.inf)
    assert states(result) == "ABCCC"
    assert apart == [0.0] * 5
    assert len({record["train_loss"] for record in result.records}) == 5


def test_simulated_seconds_hold_what_the_server_learned_from_its_store():
    result = run(num_clients=2, rounds=4, threshold=math.inf, server_speed=1e5)
    seconds = [record["simulated_seconds"] for record in result.records]
    assert states(result) == "ABCC"
    assert [b - a for a, b in itertools.pairwise([0.0, *seconds])] == pytest.approx([seconds[0]] * 4)
    assert result.summary["simulated"]["seconds"] == seconds[-1]
