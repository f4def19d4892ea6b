"""T3.*: SplitFed is FedAvg across a cut; averages are averages; who takes part, when, and with which weight."""

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.averaging import average, batch_norm_entries, drift
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.schedules import parallel
from cutlayer.server import Server
from cutlayer.streams import stream

QUICK = {"rounds": 3, "batch_size": 4, "num_threads": 1, "lr": 0.05}


def two_unequal(n=22, first=14):
    data = small_data(n=n)
    owners = (torch.arange(n) >= first).long()
    return cl.partition.by_column(data.train, owners)


def whole_state(result):
    """Return the trained weights by their name in the uncut parts, whether they were cut or not."""
    if "bottom-0" in result.modules:
        raise AssertionError("clients differ")
    modules = result.modules
    if isinstance(modules["top"], nn.Identity):
        modules = {name: part for name, part in modules["bottom"].named_children() if part is not None}
    return {f"{n}": t for name in ("bottom", "top", "tail") if name in modules for n, t in modules[name].state_dict().items()}


@pytest.mark.parametrize("scheme", ["splitfed_v1", "splitfed_v2", "splitfed_v3", "psl"])
@pytest.mark.parametrize("tail", [None, "hidden"])
def test_T3_1_T3_2_with_one_client_every_version_is_vanilla(scheme, tail):
    data, parts = small_data(n=23), cl.cut(small_model(), "stage1.block1", tail)
    clients = cl.partition.iid(data.train, num_clients=1)
    vanilla, fed = (cl.run(parts, clients, scheme=name, **QUICK) for name in ("vanilla", scheme))
    assert equal(whole_state(vanilla), whole_state(fed))
    assert vanilla.records[-1]["accuracy"] == fed.records[-1]["accuracy"]
    assert "weights" not in fed.summary["bytes"]["up"]


def test_T3_3_one_round_of_one_batch_is_one_step_on_all_of_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    clients = two_unequal()
    fields = {"rounds": 1, "batch_size": 14, "num_threads": 1, "lr": 0.1, "momentum": 0.0}
    result = cl.run(cl.cut(model, "1"), clients, scheme="splitfed_v1", **fields)
    batch = clients.source.batch(torch.arange(22), None)
    nn.functional.cross_entropy(model(batch.x), batch.y).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(whole_state(result)[name], parameter - 0.1 * parameter.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"weighting": "uniform"},
        {"weighting": "batches", "batch_norm": "pooled"},
        {"hand_over": "reset"},
        {"sync_every": "2 batches"},
        {"sync_every": "1 epoch", "local_epochs": 2},
        {"sync_every": "2 rounds", "rounds": 4},
        {"participation": 0.5, "rounds": 4},
        {"optimizer": "adam", "lr": 0.01},
        {"fedprox": 0.1},
    ],
    ids=str,
)
def test_T3_4_V1_is_FedAvg_of_the_uncut_model_at_every_cut(fields):
    clients, model = two_unequal(), small_model()
    fields = {**QUICK, "weight_decay": 1e-3, **fields}
    states = [
        whole_state(cl.run(cl.cut(model, at, tail), clients, scheme=scheme, **fields))
        for scheme, at, tail in (
            ("fedavg", "stem", None),
            ("splitfed_v1", "stem", None),
            ("splitfed_v1", "stage1.block1", None),
            ("splitfed_v1", "pool", None),
            ("splitfed_v1", "stage1", "hidden"),
        )
    ]
    assert all(equal(states[0], state) for state in states[1:])
    assert not equal(states[0], model.state_dict())


def test_T3_4_with_one_batch_norm_each_too():
    clients, model = two_unequal(), small_model()
    fed, split = (
        cl.run(cl.cut(model, "stage1.block1"), clients, scheme=scheme, batch_norm="local", **QUICK)
        for scheme in ("fedavg", "splitfed_v1")
    )
    for k in (0, 1):
        whole = fed.modules[f"bottom-{k}"]
        assert equal(whole.bottom.state_dict(), split.modules[f"bottom-{k}"].state_dict())
        assert equal(whole.top.state_dict(), split.modules[f"top-{k}"].state_dict())
    states = [split.modules[f"bottom-{k}"].state_dict() for k in (0, 1)]
    own = batch_norm_entries(list(states[0]))
    assert own == {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    for name in ("accuracy", "accuracy_min", "accuracy_max"):
        assert fed.records[-1][name] == split.records[-1][name]
    # what is its own is sent for evaluation only
    up = split.summary["bytes"]["up"]
    every = sum(t.nbytes for t in states[0].values())
    assert up["weights"]["payload"] == 3 * 2 * sum(t.nbytes for name, t in states[0].items() if name not in own)
    assert up["evaluation"]["payload"] == 3 * 2 * every - up["weights"]["payload"]


@pytest.mark.parametrize("order", ["client_major", "batch_major"])
def test_T3_5_V2_depends_on_the_order_of_clients_unless_the_server_stands_still(order, monkeypatch):
    clients = cl.partition.iid(small_data(n=24).train, num_clients=3)
    parts = cl.cut(small_model(), "stage1.block1")
    for still in (False, True):
        ends = []
        if still:
            monkeypatch.setattr(Server, "step", lambda server, client: server.top.zero_grad())
        for shift in (0, 1):
            monkeypatch.setattr(parallel, "stream", lambda seed, *names, shift=shift, **at: stream(seed + shift, *names, **at))
            ends.append(cl.run(parts, clients, scheme="splitfed_v2", server_order=order, **QUICK).modules["bottom"])
        assert equal(*ends) == still


def test_T3_6_the_average_of_identical_models_is_that_model():
    states = [small_model().state_dict() for _ in range(10)]
    for n in range(1, 11):
        merged = average(states[:n], [1.0] * n)
        assert equal(merged, states[0]), n
        assert {name: t.dtype for name, t in merged.items()} == {name: t.dtype for name, t in states[0].items()}


def test_T3_7_weights_are_shares_and_T3_8_who_drops_out_leaves_its_share_to_the_others():
    states = [{"w": torch.full((3,), float(v), dtype=torch.float64)} for v in (1, 2, 4)]
    assert torch.allclose(average(states, [1, 1, 2])["w"], torch.tensor(2.75, dtype=torch.float64), atol=1e-12)
    ones = [{"w": torch.ones(1, dtype=torch.float64)}] * 7
    assert abs(float(average(ones, [0.1, 3, 5, 7, 11, 13, 1 / 3])["w"]) - 1) < 1e-12
    assert torch.allclose(average(states[:2], [1, 1])["w"], torch.tensor(1.5, dtype=torch.float64), atol=1e-12)
    with pytest.raises(BadInput, match="sum to 0"):
        average(states, [0, 0, 0])


def test_T3_8_only_those_drawn_train_and_are_averaged():
    clients = cl.partition.iid(small_data(n=40).train, num_clients=4)
    parts = cl.cut(small_model(), "stage1.block1")
    result = cl.run(parts, clients, scheme="splitfed_v2", participation=0.5, **{**QUICK, "rounds": 8})
    weights = sum(t.nbytes for t in parts.bottom.state_dict().values())
    up, by_client = result.summary["bytes"]["up"], result.summary["bytes"]["client"]
    assert up["weights"]["payload"] == 8 * 2 * weights
    assert up["labels"]["payload"] == 8 * 2 * 10 * 8
    assert len(set(by_client.values())) > 1


def test_integers_are_not_averaged_and_pooled_variances_are_those_of_the_union():
    samples = torch.randn(60, 3, dtype=torch.float64)
    groups = samples.split([10, 20, 30])
    states = [
        {
            "bn.running_mean": g.mean(0),
            "bn.running_var": g.var(0, unbiased=False),
            "bn.num_batches_tracked": torch.tensor(len(g)),
        }
        for g in groups
    ]
    merged = average(states, [10, 20, 30], pooled=True)
    assert torch.allclose(merged["bn.running_mean"], samples.mean(0))
    assert torch.allclose(merged["bn.running_var"], samples.var(0, unbiased=False))
    plain = average(states, [10, 20, 30])
    assert (plain["bn.running_var"] < merged["bn.running_var"]).all()
    assert plain["bn.num_batches_tracked"] == 30
    assert plain["bn.num_batches_tracked"].dtype == torch.int64


def test_a_concatenated_step_is_one_step_on_all_clients_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=3)
    fields = {"rounds": 1, "batch_size": 8, "num_threads": 1, "lr": 0.1, "momentum": 0.0}
    result = cl.run(cl.cut(model, "1"), clients, scheme="splitfed_v2", server_order="concatenated", **fields)
    batch = clients.source.batch(torch.arange(24), None)
    nn.functional.cross_entropy(model(batch.x), batch.y).backward()
    for name, parameter in model[3].named_parameters():
        assert torch.allclose(
            result.modules["top"].state_dict()[f"3.{name}"], parameter - 0.1 * parameter.grad, atol=1e-6, rtol=0
        )
    for name, parameter in model[
        1
    ].named_parameters():  # each client moved by its own third of the gradient, and they are averaged
        moved = parameter - 0.1 * parameter.grad / 3
        assert torch.allclose(result.modules["bottom"].state_dict()[f"1.{name}"], moved, atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", ["batch_major", "concatenated", "arrival", "client_major"])
@pytest.mark.parametrize("method", ["backprop", "auxiliary_loss"])
def test_clients_with_few_batches_wait_for_the_others(order, method):
    clients = two_unequal(n=22, first=18)
    options = {"auxiliary": "mlp", "auxiliary_width": 8} if method == "auxiliary_loss" else {}
    result = cl.run(
        cl.cut(small_model(), "stem"), clients, method=method, schedule="parallel", server_order=order, sync_every="2 batches",
        **options, **QUICK,
    )  # fmt: skip
    up = result.summary["bytes"]["up"]
    assert up["labels"]["payload"] == 3 * 22 * 8
    # client 0 has 5 batches: 3 segments a round; client 1 has one, and takes part in the first only
    bottom = sum(t.nbytes for name in result.modules if name != "top" for t in result.modules[name].state_dict().values())
    assert up["weights"]["payload"] == 3 * (3 + 1) * bottom


def test_private_clients_are_told_as_mean_least_and_most():
    clients = two_unequal()
    parts = cl.cut(small_model(), "stage1.block1")
    for scheme, copies in (("splitfed_v3", False), ("psl", False), ("local_only", False)):
        result = cl.run(parts, clients, scheme=scheme, **QUICK)
        last = result.records[-1]
        assert last["accuracy_min"] <= last["accuracy"] <= last["accuracy_max"]
        assert last["accuracy"] == pytest.approx((last["accuracy_min"] + last["accuracy_max"]) / 2)
        assert not equal(result.modules["bottom-0"], result.modules["bottom-1"])
        assert "weights" not in result.summary["bytes"]["up"]
        assert ("top-0" in result.modules) == copies or scheme == "splitfed_v3"
        with pytest.raises(BadInput, match="a bottom of its own"):
            _ = result.parts


REFUSED = [
    ({"schedule": "parallel", "hand_over": "carry"}, "hand_over = 'carry'"),
    ({"schedule": "parallel", "sync_every": "sometimes"}, "sync_every = 'sometimes': Value error, write 5 batches"),
    ({"schedule": "parallel", "sync_every": "0 rounds"}, "sync_every = '0 rounds'"),
    ({"schedule": "parallel", "participation": 0}, "participation = 0"),
    ({"scheme": "splitfed_v1", "server_order": "concatenated"}, "one server step on all clients' batches"),
    ({"scheme": "vanilla", "server_copies": True}, "server_copies is an option of schedule parallel"),
    ({"scheme": "fedavg", "cut": "shallow"}, "method uncut and cut none go together"),
    ({"scheme": "vanilla", "cut": "none"}, "method uncut and cut none go together"),
    ({"scheme": "fedavg", "codec": {"smashed": "float8"}}, "nothing crosses the cut"),
    ({"fedprox": -1}, "fedprox = -1"),
    ({"fedprox": 0.1, "scheme": "vanilla", "num_clients": 1}, "fedprox = 0.1: it pulls clients to weights that they received"),
    ({"fedprox": 0.1, "scheme": "dsl", "num_clients": 2}, "one shared model is not handed over"),
    ({"fedprox": 0.1, "scheme": "psl", "num_clients": 2}, "private clients receive none"),
    ({"fedprox": 0.1, "scheme": "local_only", "num_clients": 2}, "with sync_every = 'never' nothing is averaged"),
]


@pytest.mark.parametrize(("fields", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_does_not_go_together_is_refused(fields, why):
    with pytest.raises(BadInput) as error:
        make(fields)
    assert why in str(error.value)


def test_client_drift_is_the_distance_from_the_average_as_a_share_of_it():
    states = [{"w": torch.tensor([3.0, 0.0]), "running_mean": torch.tensor([9.0])}, {"w": torch.tensor([1.0, 0.0])}]
    mean = {"w": torch.tensor([2.0, 0.0]), "running_mean": torch.tensor([0.0]), "n": torch.tensor(3)}
    assert drift(states, mean).item() == pytest.approx(0.5)
    assert drift([mean, mean], mean).item() == 0.0


def test_client_drift_of_a_round_is_the_mean_over_its_averages(monkeypatch):
    drifts = iter([1.0, 2.0, 6.0, 10.0, 20.0, 60.0])
    monkeypatch.setattr("cutlayer.server.drift", lambda states, mean: torch.tensor(next(drifts)))
    clients = cl.partition.contiguous(small_data(n=24).train, num_clients=2)  # of 3 batches
    parts = cl.cut(small_model(), "stage1.block1")
    result = cl.run(parts, clients, scheme="splitfed_v1", sync_every="1 batch", **{**QUICK, "rounds": 2})
    assert [record["client_drift"] for record in result.records] == [3.0, 30.0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sync_every": "2 epochs"}, "sync_every = '2 epochs' is longer than a round, of local_epochs = 1; write 2 rounds"),
        ({"sync_every": "2 rounds", "participation": 0.5}, "who is drawn in one of these rounds alone would not be averaged"),
        ({"server_copies": True, "server_order": "arrival"}, "with server_copies every client has a top of its own"),
        (
            {"server_order": "batch_major", "sync_every": "1 epoch", "local_epochs": 2, "checkpoint_every": 2},
            "would wait for ever; marks are written at every average, take 0",
        ),
        (
            {
                "server_order": "concatenated",
                "method": "auxiliary_loss",
                "lambda_weight": 0.5,
                "lambda_every": 2,
                "send_every": 3,
                "checkpoint_every": 2,
            },
            "lambda_every and send_every clients that wait for a mark and for each other's batches would wait for ever",
        ),
        (
            {"method": "loss_threshold", "server_copies": True, "participation": 0.5},
            "tops of clients that are not drawn train on what is stored, and are in no average",
        ),
    ],
)
def test_options_of_many_clients_that_would_do_nothing_or_hang_are_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        make({"schedule": "parallel", "num_clients": 2, **fields})


def test_a_period_of_more_batches_than_any_round_has_is_refused():
    clients = two_unequal()  # of 4 and 2 batches
    parts = cl.cut(small_model(), "stage1.block1")
    with pytest.raises(BadInput, match=r"nobody's round has more than 4 batches; write 4 batches or less, or rounds"):
        cl.run(parts, clients, schedule="parallel", sync_every="5 batches", **QUICK)
    cl.run(parts, clients, schedule="parallel", sync_every="4 batches", **{**QUICK, "rounds": 1})


def test_a_period_that_only_some_clients_fill_is_taken_whoever_is_drawn():
    """Of clients of 4 and 2 batches the second alone is drawn first, whose round ends before a period of 4 does."""
    parts = cl.cut(small_model(), "stage1.block1")
    for seed in (0, 4):  # the first draws the first client
        cl.run(parts, two_unequal(), schedule="parallel", sync_every="4 batches", participation=0.5, seed=seed, **QUICK)


@pytest.mark.parametrize("fields", [{"scheme": "vanilla"}, {"scheme": "splitfed_v2"}], ids=str)
def test_fedprox_does_not_draw_a_top_that_receives_no_weights(fields, monkeypatch):
    servers, steps = [], Server.step

    def step(self, client):
        servers.append(self)
        steps(self, client)

    monkeypatch.setattr(Server, "step", step)
    cl.run(cl.cut(small_model(), "stage1.block1"), two_unequal(), fedprox=0.1, **fields, **QUICK)
    assert servers[-1].anchors == {}


def test_local_batch_norm_where_there_is_none_is_one_model():
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU()), nn.Linear(8, 4))
    result = cl.run(cl.cut(model, "0"), two_unequal(), scheme="splitfed_v2", batch_norm="local", **QUICK)
    assert 0 <= result.summary["accuracy_final"] <= 1
