"""T1.*: vanilla split learning is the uncut model, bit for bit, whoever holds the client's part."""

import copy
from contextlib import nullcontext

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.building import batches, lr_factor
from cutlayer.cut import Parts
from cutlayer.evaluate import recomposed
from cutlayer.parties import build
from cutlayer.recipes.recipe import make
from cutlayer.task import Task, accuracy
from cutlayer.transports import inprocess

OPTIMIZERS = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"optimizer": "adam", "lr": 0.01, "momentum": 0.0},
}


def uncut(model, clients, recipe_fields, seen=None):
    """Train the uncut model in one loop on the client-ordered batches, and return it; `seen` gets (round, loss, samples)."""
    model = copy.deepcopy(model)
    recipe = make({"num_clients": len(clients), **recipe_fields})
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    keys = ("lr", "momentum", "weight_decay") if recipe.optimizer == "sgd" else ("lr", "weight_decay")
    optimizer = kinds[recipe.optimizer](model.parameters(), **{k: getattr(recipe, k) for k in keys})
    for r in range(recipe.rounds):
        optimizer.param_groups[0]["lr"] = recipe.lr * lr_factor(recipe)(r)
        for k, share in enumerate(clients.shares):
            for x, y, *_ in batches(recipe, clients.source, share, k)(r, 0):
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if seen is not None:
                    seen.append((r, loss.item(), len(y)))
    return model


def assert_same_model(result, model):
    mine = {n: t for part in result.parts[:3] if part is not None for n, t in part.state_dict().items()}
    assert equal(mine, model.state_dict())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("tail", [None, "hidden"])
def test_T1_1_one_client_equals_the_uncut_model(optimizer, tail):
    data, model = small_data(n=23), small_model()
    clients = cl.partition.iid(data.train, num_clients=1)
    fields = {"rounds": 3, "batch_size": 8, "num_threads": 1, **OPTIMIZERS[optimizer]}
    result = cl.run(
        cl.cut(model, "stage1.block1", tail), clients, scheme="vanilla", **({"tail": tail} if tail else {}), **fields
    )
    assert_same_model(result, uncut(model, clients, fields))


def test_clients_may_learn_at_a_rate_of_their_own():
    """One step of plain gradient descent: the top is the same bits, and the client goes twice as far."""
    data, model = small_data(n=8), small_model()
    clients = cl.partition.iid(data.train, num_clients=1)
    fields = {"rounds": 1, "batch_size": 8, "num_threads": 1, "lr": 0.25, "momentum": 0.0, "warmup_rounds": 0}
    once, twice = (
        cl.run(cl.cut(model, "stage1.block1"), clients, scheme="vanilla", client_lr=lr, **fields) for lr in (None, 0.5)
    )
    assert equal(once.parts.top.state_dict(), twice.parts.top.state_dict())
    start = dict(model.named_parameters())
    for (name, a), b in zip(once.parts.bottom.named_parameters(), twice.parts.bottom.parameters(), strict=True):
        assert not torch.equal(a, start[name])
        torch.testing.assert_close(b - start[name], 2 * (a - start[name]), rtol=0, atol=1e-6)


def test_T1_1_in_bfloat16_and_channels_last_too():
    data, model = small_data(), small_model()
    clients = cl.partition.iid(data.train, num_clients=1)
    fields = {"rounds": 2, "batch_size": 8, "num_threads": 1, "lr": 0.1}
    result = cl.run(cl.cut(model, "stage1"), clients, precision="bfloat16", memory_format="channels_last", **fields)
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    recipe = make(fields)
    for r in range(2):
        for x, y, *_ in batches(recipe, clients.source, clients.shares[0], 0)(r, 0):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = twin(x.contiguous(memory_format=torch.channels_last))
            nn.functional.cross_entropy(output.float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same_model(result, twin)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("hand_over", ["carry", "shared"])
def test_T1_2_clients_in_turn_equal_the_uncut_model_on_their_batches_in_turn(optimizer, hand_over):
    data, model = small_data(n=25), small_model()
    clients = cl.partition.iid(data.train, num_clients=3)
    fields = {"rounds": 2, "batch_size": 4, "num_threads": 1, **OPTIMIZERS[optimizer]}
    result = cl.run(cl.cut(model, "stage1.block2"), clients, scheme="vanilla", hand_over=hand_over, **fields)
    assert_same_model(result, uncut(model, clients, fields))


def test_T1_3_hand_over_through_the_server_by_a_peer_or_not_at_all_differs_in_bytes_only():
    data, model = small_data(), small_model()
    clients = cl.partition.iid(data.train, num_clients=3)
    parts = cl.cut(model, "stage1.block2")
    fields = {"rounds": 2, "batch_size": 4, "num_threads": 1, "momentum": 0.0}
    served, shared = (cl.run(parts, clients, hand_over=h, **fields) for h in ("carry", "shared"))
    assert all(equal(served.modules[n], shared.modules[n]) for n in served.modules)
    weights = sum(t.nbytes for t in parts.bottom.state_dict().values())
    turns = 2 * 3
    assert served.summary["bytes"]["up"]["weights"]["payload"] == turns * weights
    # nothing travels before the first turn: the initial weights come from the seed
    assert served.summary["bytes"]["down"]["weights"]["payload"] == (turns - 1) * weights
    assert served.summary["bytes"]["peer_hand_over"] == (turns - 1) * weights
    assert "weights" not in shared.summary["bytes"]["up"]
    assert shared.summary["bytes"]["peer_hand_over"] == 0


def test_T1_4_as_much_comes_back_as_went_up():
    data, parts = small_data(n=23), cl.cut(small_model(), "stage1.block1")
    result = cl.run(parts, cl.partition.iid(data.train, num_clients=2), rounds=2, batch_size=4, num_threads=1)
    elements = 4 * 6 * 6
    up, down = result.summary["bytes"]["up"], result.summary["bytes"]["down"]
    assert up["smashed"]["payload"] == down["cut_grad"]["payload"] == 2 * 23 * elements * 4
    assert up["labels"]["payload"] == 2 * 23 * 8


def test_T1_5_moving_the_cut_changes_no_weight():
    data, model = small_data(), small_model()
    clients = cl.partition.iid(data.train, num_clients=1)
    results = [
        cl.run(cl.cut(model, at), clients, rounds=2, batch_size=8, num_threads=1) for at in ("stem", "stage1", "pool", "hidden")
    ]
    joined = [{**r.modules["bottom"].state_dict(), **r.modules["top"].state_dict()} for r in results]
    assert all(equal({k: other[k] for k in joined[0]}, joined[0]) for other in joined)
    assert len({r.summary["bytes"]["up"]["smashed"]["payload"] for r in results}) > 1


@pytest.mark.parametrize("hand_over", ["reset", "carry", "local"])
def test_T1_6_a_client_that_took_over_the_weights_still_learns(hand_over):
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.iid(data.train, num_clients=2)
    recipe = make({"num_clients": 2, "rounds": 1, "batch_size": 12, "num_threads": 1, "hand_over": hand_over})
    parties = build(recipe, parts, clients, data.train, Task(num_classes=4), lambda: None)
    seen = []
    for client, method in zip(parties.clients, parties.methods, strict=True):
        step, take = method.step, client.receive

        def spy(go, client=client, take=take):
            take(go)
            seen.append(("taken", client.id, {k: v.clone() for k, v in client.weights().items()}))

        client.receive = spy

        def stepped(client, batch, step=step):
            record = yield from step(client, batch)
            seen.append(("stepped", client.id, {k: v.clone() for k, v in client.weights().items()}))
            return record

        method.step = stepped
    from cutlayer.program import program

    programs = {c.id: program(c, m, b) for c, m, b in zip(parties.clients, parties.methods, parties.batches, strict=True)}
    inprocess.run(programs, parties.server, parties.ends, parties.meter)
    events = [(what, who) for what, who, _ in seen]
    assert events == [("taken", 0), ("stepped", 0), ("taken", 1), ("stepped", 1)]
    assert equal(seen[1][2], seen[2][2])
    moved = [name for name in seen[3][2] if not torch.equal(seen[2][2][name], seen[3][2][name])]
    assert {f"bottom.{n}" for n, _ in parts.bottom.named_parameters()} <= set(moved)


def test_hand_over_policies_are_what_they_say():
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.iid(data.train, num_clients=2)
    runs = {h: cl.run(parts, clients, hand_over=h, rounds=3, batch_size=4, num_threads=1) for h in ("reset", "carry", "local")}
    tops = [run.modules["top"].state_dict() for run in runs.values()]
    assert not equal(tops[0], tops[1])
    assert not equal(tops[0], tops[2])
    assert not equal(tops[1], tops[2])
    up = {h: run.summary["bytes"]["up"] for h, run in runs.items()}
    parameters = sum(p.nbytes for p in parts.bottom.parameters())
    assert up["carry"]["optimizer"]["payload"] == 6 * parameters
    assert "optimizer" not in up["reset"]
    assert "optimizer" not in up["local"]


def test_the_uncut_composition_is_evaluated_with_the_last_clients_weights():
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    result = cl.run(parts, cl.partition.iid(data.train, num_clients=2), rounds=2, batch_size=4, num_threads=1)
    trained = Parts(*(m.eval() if isinstance(m, nn.Module) else m for m in result.parts))
    batch = data.test.batch(torch.arange(len(data.test)), None)
    with torch.no_grad():
        right = (trained.recompose(batch.x).argmax(1) == batch.y).double().mean()
    assert result.summary["accuracy_final"] == pytest.approx(float(right), abs=1e-12)


def test_an_evaluation_in_batches_is_that_of_all_samples_at_once():
    """Of batches of 5, 5 and 2 only the last is answered wrongly: the mean of their accuracies would be 2/3, and not 10/12."""
    y = torch.arange(12) % 2
    answers = torch.where(torch.arange(12) < 10, y, 1 - y)
    dataset = TensorDataset(nn.functional.one_hot(answers).float(), y)
    source = cl.data.from_datasets(dataset, dataset, 2).test
    head = nn.Linear(2, 2, bias=False)  # says the opposite, and too quietly to change the answer of both
    head.weight.data = -torch.eye(2)
    modules = {"bottom": nn.Identity(), "top": nn.Identity(), "auxiliary": head}
    task = Task(metrics={"accuracy": accuracy, "samples": lambda output, y: len(output)})
    expected = {
        "accuracy": 10 / 12, "auxiliary_accuracy": 2 / 12, "ensemble_accuracy": 10 / 12,
        "samples": 12, "auxiliary_samples": 12, "ensemble_samples": 12,
    }  # fmt: skip
    for batch_size in (5, 12):
        assert recomposed(modules, source, task, nullcontext, batch_size=batch_size) == pytest.approx(expected)


def test_the_loss_of_a_round_is_the_mean_over_its_samples_and_not_over_its_batches():
    data, model = small_data(n=19), small_model()
    clients = cl.partition.by_column(data.train, (torch.arange(19) >= 11).long())
    fields = {"rounds": 2, "batch_size": 8, "num_threads": 1, "lr": 0.1}
    result = cl.run(cl.cut(model, "stage1.block1"), clients, scheme="vanilla", hand_over="carry", **fields)
    seen = []
    uncut(model, clients, fields, seen)
    assert [samples for _, _, samples in seen] == [8, 3, 8] * 2
    expected = [sum(loss * samples for r, loss, samples in seen if r == round) / 19 for round in range(2)]
    assert [record["train_loss"] for record in result.records] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", ["vanilla", "dsl"])
def test_T10_1_the_identity_codec_changes_neither_bits_nor_bytes(scheme):
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.iid(data.train, num_clients=2)
    how = {
        "scheme": scheme,
        "rounds": 2,
        "batch_size": 4,
        "num_threads": 1,
        **({"auxiliary": "linear"} if scheme == "dsl" else {}),
    }
    roles = {"smashed": "identity", **({"cut_grad": "identity"} if scheme == "vanilla" else {})}
    bare, coded = cl.run(parts, clients, **how), cl.run(parts, clients, codec=roles, **how)
    assert all(equal(bare.modules[name], coded.modules[name]) for name in bare.modules)
    assert bare.summary["bytes"] == coded.summary["bytes"]
