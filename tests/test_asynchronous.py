"""T11.*: merging without a barrier, under a virtual clock whose order can be replayed."""

import json
from collections import Counter

import pytest
import torch
from conftest import equal, small_data, small_model

import cutlayer as cl
from cutlayer.averaging import add_changes, mix
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.run import Paused, train
from cutlayer.schedules import Plan
from cutlayer.schedules.asynchronous import Asynchronous, AsynchronousOptions
from cutlayer.server import Server
from cutlayer.task import Task
from cutlayer.training import Training

pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = {"rounds": 4, "batch_size": 4, "num_threads": 1, "lr": 0.05}
EQUAL = {"speeds": 1e8}
SLOW = {"uplink": 20, "downlink": 50, "latency": 30, "speeds": "1e6,2e6,5e6", "server_speed": 1e8}


def run(num_clients=3, n=24, parts=None, **fields):
    clients = cl.partition.contiguous(small_data(n=n).train, num_clients=num_clients)
    return cl.run(parts or cl.cut(small_model(), "stage1.block1"), clients, **{"schedule": "asynchronous", **QUICK, **fields})


@pytest.mark.parametrize("copies", [False, True])
def test_T11_1_a_full_buffer_of_equal_clients_is_splitfed(copies):
    how = {"merge": "fedbuff", "buffer_size": 3, "staleness": "constant", "server_copies": copies, **EQUAL}
    ours = run(**how)
    order = {"server_copies": True} if copies else {"server_order": "arrival"}
    theirs = run(schedule="parallel", weighting="uniform", **order, **EQUAL)
    for name in ("bottom", "top"):
        for key, tensor in theirs.modules[name].state_dict().items():
            assert torch.allclose(ours.modules[name].state_dict()[key].float(), tensor.float(), atol=1e-6), key
    assert ours.records[-1]["staleness_0"] == 3 * 4


@pytest.mark.parametrize("clock", [{}, EQUAL], ids=["no clock", "clock"])
@pytest.mark.parametrize("copies", [False, True])
def test_T11_2_fedasync_with_one_client_and_all_of_it_is_vanilla(copies, clock):
    ours = run(num_clients=1, mixing=1.0, server_copies=copies, **clock)
    vanilla = run(num_clients=1, schedule="relay")
    assert all(equal(ours.modules[name], vanilla.modules[name]) for name in vanilla.modules)
    assert [r["accuracy"] for r in ours.records] == [r["accuracy"] for r in vanilla.records]


def test_T11_3_with_nothing_mixed_in_the_global_model_never_changes():
    parts = cl.cut(small_model(), "stage1.block1")
    result = run(parts=parts, mixing=0.0)
    assert equal(result.modules["bottom"], parts.bottom)
    assert not equal(result.modules["top"], parts.top)


@pytest.mark.parametrize(
    "scheme",
    [{"merge": "fedasync"}, {"merge": "fedbuff", "buffer_size": 2}, {"schedule": "parallel", "server_order": "arrival"}],
    ids=str,
)
@pytest.mark.parametrize(
    "method", [{"method": "backprop"}, {"method": "auxiliary_loss", "auxiliary": "mlp", "auxiliary_width": 8}], ids=str
)
@pytest.mark.parametrize("tail", [None, "hidden"])
def test_T11_4_replaying_the_recorded_order_gives_the_same_bits(scheme, method, tail, tmp_path):
    parts = cl.cut(small_model(), "stage1.block1", tail)
    fields = {"schedule": "asynchronous", **QUICK, **SLOW, **scheme, **method}
    clients = cl.partition.contiguous(small_data(n=26).train, num_clients=3)
    first = cl.run(parts, clients, out=tmp_path, **fields)
    order = json.loads((tmp_path / "order.json").read_text())
    recipe = make({"num_clients": 3, "tail": tail, **fields})
    again = train(recipe, parts, clients, Task(), replay=order)
    assert all(equal(first.modules[name], again.modules[name]) for name in first.modules)
    assert first.summary["simulated"]["uplink"] == 20
    assert again.summary["simulated"] is None
    # and in the order of arrival without a clock the weights are others: the order is what is replayed
    plain = train(
        make({"num_clients": 3, "tail": tail, **QUICK, "schedule": "asynchronous", **scheme, **method}), parts, clients, Task()
    )
    assert not equal(first.modules["top"], plain.modules["top"])


def test_T11_5_equal_clients_are_as_stale_as_there_are_others():
    result = run(num_clients=4, n=32, rounds=6, staleness="constant", **EQUAL)
    first, last = result.records[0], result.records[-1]
    assert {k: v for k, v in first.items() if k.startswith("staleness")} == {f"staleness_{t}": 1.0 for t in range(4)}
    assert last["staleness_3"] == 1 + 5 * 4
    assert sum(v for k, v in last.items() if k.startswith("staleness")) == 6 * 4


def test_T11_6_what_is_merged_lies_between_what_was_merged():
    draw = torch.Generator().manual_seed(0)
    base, *others = ({"w": torch.randn(50, generator=draw)} for _ in range(4))
    low, high = (end(torch.stack([s["w"] for s in (base, *others)]), 0).values for end in (torch.min, torch.max))
    buffered = add_changes(base, [(w, base, o) for w, o in zip((1.0, 0.5, 0.3), others, strict=True)], 1.0, 3.0)["w"]
    mixed = mix(base, others[0], 0.4)["w"]
    for merged in (buffered, mixed):
        assert (merged >= low - 1e-6).all()
        assert (merged <= high + 1e-6).all()
    assert torch.allclose(mixed, 0.6 * base["w"] + 0.4 * others[0]["w"])


def test_staleness_weights():
    def weights(**options):
        schedule = Asynchronous(AsynchronousOptions(**options), Plan(2, 1))
        return [round(schedule.weight(t), 4) for t in (0, 1, 3, 8)]

    assert weights(staleness="constant") == [1, 1, 1, 1]
    assert weights(staleness="polynomial", staleness_a=0.5) == [1, 0.7071, 0.5, 0.3333]
    assert weights(staleness="hinge", staleness_a=1.0, staleness_b=3) == [1, 1, 1, 0.1667]


def test_a_model_that_is_too_old_is_dropped_and_its_client_gets_the_newest():
    parts = cl.cut(small_model(), "stage1.block1")
    slow = {"speeds": "1e6,3e6,3e6", "rounds": 8}
    assert not equal(run(parts=parts, max_staleness=1, **slow).modules["bottom"], run(parts=parts, **slow).modules["bottom"])


def test_fairness_holds_a_fast_client_back_and_a_stale_step_is_a_small_one(tmp_path):
    fast = {"speeds": "1e6,5e6,5e6"}
    for fairness in (0, 2):
        run(fairness=fairness, out=tmp_path / str(fairness), **fast)
    free, fair = (json.loads((tmp_path / name / "order.json").read_text()) for name in ("0", "2"))
    assert free.count(0) < fair.count(0)
    plain, scaled = (run(server_rate=rate, **fast).modules["top"] for rate in ("constant", "staleness"))
    assert not equal(plain, scaled)


def test_the_clock_adds_what_can_be_added_by_hand():
    how = {"uplink": 8.0, "downlink": 16.0, "latency": 10.0, "speeds": 1e6, "server_speed": 1e7}
    result = run(num_clients=1, n=8, schedule="relay", **{**QUICK, "rounds": 1, "batch_size": 4}, **how)
    cost, wire = result.summary["macs_per_sample"], result.summary["bytes"]
    compute = 8 * 3 * (cost["bottom"] / 1e6 + cost["top"] / 1e7)
    up = sum(cell["wire"] for role, cell in wire["up"].items() if role != "evaluation")
    up += wire["up"]["evaluation"]["wire"] - wire["up"]["evaluation"]["payload"]
    down = sum(cell["wire"] for cell in wire["down"].values())
    last_go = 128  # the go that ends the run arrives when the server has nothing more to do
    network = up / 1e6 + (down - last_go) / 2e6 + 0.010 * 6  # hello, go, two batches up and down, sync less its go
    assert result.summary["simulated"]["seconds"] == pytest.approx(compute + network + 0.010, rel=2e-3)


def test_the_clock_changes_no_weight_where_nothing_depends_on_order():
    parts = cl.cut(small_model(), "stage1.block1")
    for scheme in ("vanilla", "splitfed_v1", "splitfed_v2", "fedavg"):
        plain, timed = (timed_run(parts, scheme, how) for how in ({}, SLOW))
        assert all(equal(plain.modules[name], timed.modules[name]) for name in plain.modules)
        faster = timed_run(parts, scheme, {**SLOW, "uplink": 200, "downlink": 500})
        assert faster.summary["simulated"]["seconds"] < timed.summary["simulated"]["seconds"]


def test_owners_of_whole_networks_train_at_once_and_one_top_takes_turns():
    parts, fast = (
        cl.cut(small_model(), "stage1.block1"),
        {**SLOW, "uplink": 1e6, "downlink": 1e6, "latency": 0, "speeds": "1e6"},
    )
    one, federated, alone, arrival, turns = (
        timed_run(parts, scheme, fast).summary["simulated"]["seconds"]
        for scheme in ("centralised", "fedavg", "local_only", "psl", "splitfed_v2")
    )
    assert federated == pytest.approx(one / 3, rel=0.01)
    assert alone == pytest.approx(one / 3, rel=0.01)
    assert turns > 2 * arrival


def test_a_backward_pass_that_does_not_happen_takes_no_time():
    slow_clients = {"speeds": "1e3", "server_speed": 1e12}
    result = timed_run(cl.cut(small_model(), "stage1.block1"), "dsl_seq", {**slow_clients, "aux_weight": 0.0})
    forward = 24 * QUICK["rounds"] * result.summary["macs_per_sample"]["bottom"]
    assert result.summary["simulated"]["seconds"] == pytest.approx(forward / 1e3, rel=0.01)


def timed_run(parts, scheme, how):
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=3)
    return cl.run(parts, clients, scheme=scheme, **QUICK, **how)


def test_reports_say_simulated_with_the_parameters(tmp_path):
    from cutlayer.report import Run, rows

    parts = cl.cut(small_model(), "stage1.block1")
    timed, plain = timed_run(parts, "vanilla", SLOW), timed_run(parts, "vanilla", {})
    header, table = rows([Run(timed.summary, timed.records), Run(plain.summary, plain.records)])
    assert header[-1] == "simulated seconds"
    assert table[0][-1] == f"{timed.summary['simulated']['seconds']:.1f}"
    assert table[1][-1] == "-"
    page = timed.report(tmp_path / "r.html").read_text()
    assert "modelled, not measured" in page
    assert "server_speed" in page
    assert "simulated seconds" not in rows([Run(plain.summary, plain.records)])[0]


def test_speeds_are_for_one_client_each_or_for_all():
    with pytest.raises(BadInput, match="2 are given for 3 clients"):
        make({"num_clients": 3, "speeds": "1e9,2e9"})


def unequal(sizes=(20, 24, 28), **fields):
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    clients = cl.partition.by_column(small_data(n=sum(sizes)).train, owner)
    return cl.run(cl.cut(small_model(), "stage1.block1"), clients, **{"schedule": "asynchronous", **QUICK, **fields})


@pytest.mark.parametrize("own", [{}, {"server_copies": True}, {"merge": "fedbuff", "buffer_size": 2}], ids=str)
def test_what_was_evaluated_last_is_what_is_kept(own, monkeypatch):
    """No turn begins whose end nobody waits for, so nothing trains on after the last round."""
    tops, ends = [], Server.end_round

    def end_round(self):
        tops.append(({k: t.clone() for k, t in self.top.state_dict().items()}, dict(self.weights)))
        ends(self)

    monkeypatch.setattr(Server, "end_round", end_round)
    result = unequal(speeds="1e6,1.3e6,2e6", server_speed=1e8, **own)
    assert equal(tops[-1][0], result.modules["top"].state_dict())
    assert equal({k.removeprefix("bottom."): t for k, t in tops[-1][1].items()}, result.modules["bottom"].state_dict())
    assert result.records[-1]["simulated_seconds"] == result.summary["simulated"]["seconds"]
    turns = sum(n for name, n in result.records[-1].items() if name.startswith("staleness_"))
    assert turns == 4 * 3


def test_a_buffer_that_is_not_full_at_the_end_is_merged():
    parts = cl.cut(small_model(), "stage1.block1")
    result = unequal((8, 8, 8), merge="fedbuff", buffer_size=12, restart="at_once")
    assert not equal(result.modules["bottom"], parts.bottom)


def test_who_comes_after_merges_begins_with_what_was_merged():
    schedule, server = Asynchronous(AsynchronousOptions(), Plan(2, 3)), Late()
    (go,) = schedule._gos(server)
    assert go["weights"]
    assert go["version"] == 4
    (again,) = schedule._gos(server)  # it says hello again in the middle of its turn, when more has been merged
    assert not again["weights"]
    server.version = 6
    assert schedule._go(server, 1, False)["version"] == 4


class Late:
    """A server whose second client comes when others have been merged four times."""

    version, weights, waiting = 4, {"bottom.w": torch.ones(1)}, {1: None}

    def go(self, client, **how):
        return how


@pytest.mark.parametrize("hand_over", ["local", "reset"])
def test_a_copy_begins_a_turn_as_its_client_does(hand_over, monkeypatch):
    """Drawn by FedProx to what it begins with, and with hand_over reset without momentum."""
    found, plain = [], Asynchronous._go

    def go(self, server, k, over):
        message = plain(self, server, k, over)
        if not over and self.taken[k]:
            found.append((k in server.anchors, len(server.optimizers[k].state)))
        return message

    monkeypatch.setattr(Asynchronous, "_go", go)
    unequal(server_copies=True, fedprox=0.1, hand_over=hand_over)
    assert found
    assert all(not anchored and bool(slots) == (hand_over == "local") for anchored, slots in found)


def test_what_holds_nobody_back_is_refused():
    with pytest.raises(BadInput, match="fairness = 2: clients are held back by their gradients"):
        unequal(method="auxiliary_loss", auxiliary="pool_linear", fairness=2)
    with pytest.raises(BadInput, match="buffer_size = 13 is never full with 12 turns in all"):
        unequal(merge="fedbuff", buffer_size=13, restart="at_once")


def test_no_step_of_the_top_draws_what_another_drew(monkeypatch):
    """A fast client takes two turns in a round, and the steps of both are counted from 0."""
    drawn, dropout = [], Training.dropout
    monkeypatch.setattr(Training, "dropout", lambda self, *which: (drawn.append(which), dropout(self, *which))[1])
    run(speeds="1e6,1e6,9e6", server_speed=1e9)
    tops = [which for which in drawn if which[0] == "top"]
    assert max(Counter(client for _, client, _, _ in tops).values()) > QUICK["rounds"] * 8 // QUICK["batch_size"]
    assert len(set(tops)) == len(tops)


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine"])
def test_a_top_of_its_own_has_the_learning_rate_of_its_client(lr_schedule):
    """Bottom and copy of one client are together the uncut network that the client would train under the same schedule."""
    how = {"merge": "fedbuff", "buffer_size": 2, "server_copies": True, "lr_schedule": lr_schedule, "speeds": "1e6,2e6,7e6"}
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=3)
    model = small_model()
    split = cl.run(cl.cut(model, "stage1.block1"), clients, **{**QUICK, "schedule": "asynchronous", **how})
    uncut = cl.run(
        cl.cut(model, "stage1.block1"),
        clients,
        **{**QUICK, "schedule": "asynchronous", "method": "uncut", "cut": "none", **how},
    )
    assert [r["staleness_0"] for r in split.records] == [r["staleness_0"] for r in uncut.records]
    theirs = uncut.modules["bottom"].state_dict()
    for part in ("bottom", "top"):
        for key, tensor in split.modules[part].state_dict().items():
            assert torch.allclose(theirs[f"{part}.{key}"].float(), tensor.float(), atol=1e-5), key


def test_a_replayed_run_goes_on_from_no_mark(tmp_path):
    parts = cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=2)
    recipe = make({"num_clients": 2, "schedule": "asynchronous", "checkpoint_every": 1, **QUICK})
    with pytest.raises(Paused):
        train(recipe, parts, clients, Task(), tmp_path, deadline=0.0)
    with pytest.raises(BadInput, match="goes on from none; delete it, or choose another out"):
        train(recipe, parts, clients, Task(), tmp_path, replay=[0, 1])
