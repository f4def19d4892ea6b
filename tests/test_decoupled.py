"""T4.*: decoupled split learning sends nothing back, and what each side learns is what the equations say."""

import copy
import gc
import weakref

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.building import batches
from cutlayer.client import Batches
from cutlayer.models.heads import HEADS
from cutlayer.parties import build
from cutlayer.program import program
from cutlayer.recipes.recipe import make
from cutlayer.task import Task
from cutlayer.transports import inprocess
from cutlayer.wire import Message

FIELDS = {"batch_size": 8, "num_threads": 1, "lr": 0.05, "auxiliary": "pool_linear"}


def parties_of(parts=None, num_clients=1, rounds=2, n=24, **fields):
    data = small_data(n=n)
    clients = cl.partition.contiguous(data.train, num_clients=num_clients)
    recipe = make({"scheme": "dsl", "rounds": rounds, "num_clients": num_clients, **FIELDS, **fields})
    parts = parts or cl.cut(small_model(), "stage1.block1")
    from cutlayer.fit import fitted

    return build(recipe, parts, clients, data.train, fitted(Task(), recipe, parts, data.train), lambda: None), recipe


def drive(parties, **how):
    programs = {c.id: program(c, m, b) for c, m, b in zip(parties.clients, parties.methods, parties.batches, strict=True)}
    inprocess.run(programs, parties.server, parties.ends, parties.meter, **how)
    return parties


def client_part(parties):
    return {name: t.clone() for name, t in parties.clients[0].modules.state_dict().items()}


def test_T4_1_nothing_comes_down_in_training():
    kinds = []
    parties, _ = parties_of(num_clients=2)
    drive(parties, tap=lambda direction, packed: kinds.append((direction, packed.message.kind, set(packed.message.tensors))))
    assert {kind for direction, kind, _ in kinds if direction == "down"} == {"go"}
    assert all(not tensors for direction, _, tensors in kinds if direction == "down")
    assert not any("cut_grad" in tensors for _, _, tensors in kinds)
    assert sum(n for (direction, _, _), n in parties.meter.payload.items() if direction == "down") == 0


def test_T4_2_clients_do_not_depend_on_the_server():
    parts = cl.cut(small_model(), "stage1.block1")
    other = cl.cut(small_model(seed=9), "stage1.block1")
    first = drive(parties_of(parts)[0])
    second = drive(parties_of(parts._replace(top=other.top))[0])
    assert equal(client_part(first), client_part(second))
    assert not equal(first.server.top, second.server.top)


def test_T4_3_without_the_auxiliary_loss_and_with_the_servers_gradient_it_is_conventional():
    parts = cl.cut(small_model(), "stage1.block1")
    mixed = drive(parties_of(parts, aux_weight=0.0, lambda_weight=1.0)[0])
    data = small_data()
    plain = cl.run(
        parts,
        cl.partition.contiguous(data.train, num_clients=1),
        scheme="vanilla",
        rounds=2,
        batch_size=8,
        num_threads=1,
        lr=0.05,
    )
    assert equal(mixed.clients[0].modules["bottom"], plain.modules["bottom"])
    assert equal(mixed.server.top, plain.modules["top"])


def test_T4_4_the_clients_gradient_is_that_of_the_weighted_sum_on_the_uncut_graph():
    alpha, lam = 0.7, 0.3
    parties, _ = parties_of(aux_weight=alpha, lambda_weight=lam, rounds=1, n=8, momentum=0.0, lr=1.0)
    client, server = parties.clients[0], parties.server
    modules, top = copy.deepcopy(client.modules), copy.deepcopy(server.top)
    before = client_part(parties)
    (batch,) = parties.batches[0](0, 0)
    drive(parties)
    z = modules["bottom"](batch.x)
    loss = alpha * nn.functional.cross_entropy(modules["auxiliary"](z), batch.y) + lam * nn.functional.cross_entropy(
        top(z), batch.y
    )
    loss.backward()
    after = client_part(parties)
    for name, parameter in modules.named_parameters():
        assert torch.allclose(before[name] - after[name], parameter.grad, atol=1e-6), name


def test_T4_5_the_server_learns_from_activations_before_the_clients_update():
    stream, tops = [], copy.deepcopy(cl.cut(small_model(), "stage1.block1").top)
    parties, _ = parties_of()
    drive(
        parties,
        tap=lambda d, p: stream.append({r.role: r.parts[0].clone() for r in p.roles}) if p.message.kind == "smashed" else None,
    )
    optimizer = torch.optim.SGD(tops.parameters(), lr=0.05, momentum=0.9)
    for sent in stream:
        nn.functional.cross_entropy(tops(sent["smashed"]), sent["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(stream) == 6
    assert equal(tops, parties.server.top)
    fresh, _ = parties_of()
    (first, *_) = fresh.batches[0](0, 0)
    assert torch.equal(stream[0]["smashed"], fresh.clients[0].modules["bottom"](first.x))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_T4_6_bytes_are_half_of_conventional_and_a_period_adds_its_share(every):
    data = small_data(n=24)
    clients = cl.partition.contiguous(data.train, num_clients=1)
    parts = cl.cut(small_model(), "stage1.block1")
    how = {"rounds": 2, "batch_size": 4, "num_threads": 1}
    table = {}
    for name, fields in {
        "conventional": {"scheme": "vanilla"},
        "decoupled": {"scheme": "dsl", "auxiliary": "linear"},
        "mixed": {"scheme": "dsl", "auxiliary": "linear", "lambda_weight": 0.5, "lambda_every": every},
    }.items():
        b = cl.run(parts, clients, **how, **fields).summary["bytes"]
        table[name] = b["up"]["smashed"]["payload"], b["down"].get("cut_grad", {"payload": 0})["payload"]
    up = table["conventional"][0]
    assert table["conventional"] == (up, up)
    assert table["decoupled"] == (up, 0)
    assert sum(table["decoupled"]) * 2 == sum(table["conventional"])
    assert table["mixed"] == (up, up // every)


def test_send_every_sends_every_hth_batch_and_the_client_trains_on_all():
    data = small_data(n=24)
    clients = cl.partition.contiguous(data.train, num_clients=1)
    parts = cl.cut(small_model(), "stage1.block1")
    how = {"scheme": "dsl", "rounds": 2, "batch_size": 4, "num_threads": 1, "auxiliary": "linear"}
    every, third = cl.run(parts, clients, **how), cl.run(parts, clients, send_every=3, **how)
    up = [run.summary["bytes"]["up"]["smashed"]["payload"] for run in (every, third)]
    assert up[0] == 3 * up[1]
    assert equal(every.modules["bottom"], third.modules["bottom"])
    assert not equal(every.modules["top"], third.modules["top"])


def test_lambda_compensation_weighs_the_gradient_by_its_period():
    parts = cl.cut(small_model(), "stage1.block1")
    compensated = drive(parties_of(parts, lambda_weight=0.5, lambda_every=2, lambda_compensate=True)[0])
    doubled = drive(parties_of(parts, lambda_weight=1.0, lambda_every=2)[0])
    plain = drive(parties_of(parts, lambda_weight=0.5, lambda_every=2)[0])
    assert equal(client_part(compensated), client_part(doubled))
    assert not equal(client_part(compensated), client_part(plain))


@pytest.mark.parametrize("method", ["backprop", "auxiliary_loss"])
def test_T4_7_law5_one_optimizer_step_per_side_and_batch(method, monkeypatch):
    parties, _ = (
        parties_of(method=method, rounds=3, **({"auxiliary": "linear"} if method == "auxiliary_loss" else {}))
        if method == "auxiliary_loss"
        else (build_backprop(), None)
    )
    calls = {"client": 0, "server": 0}
    for side, optimizer in (("client", parties.clients[0].optimizer), ("server", parties.server.optimizers[-1])):
        take = optimizer.step

        def counted(*args, side=side, take=take):
            calls[side] += 1
            return take(*args)

        monkeypatch.setattr(optimizer, "step", counted)
    drive(parties)
    assert calls == {"client": 9, "server": 9}


def build_backprop():
    data = small_data()
    clients = cl.partition.contiguous(data.train, num_clients=1)
    recipe = make({"scheme": "vanilla", "rounds": 3, "batch_size": 8, "num_threads": 1})
    return build(recipe, cl.cut(small_model(), "stage1.block1"), clients, data.train, Task(num_classes=4), lambda: None)


@pytest.mark.parametrize("reconstruction", ["none", "conv2", "conv1x1"])
@pytest.mark.parametrize("head", HEADS)
def test_T4_8_every_parameter_of_every_head_is_in_an_optimizer_and_moves(head, reconstruction):
    parties, _ = parties_of(auxiliary=head, reconstruction=reconstruction, rounds=1, n=8)
    client = parties.clients[0]
    optimized = {id(p) for group in client.optimizer.param_groups for p in group["params"]}
    before = {n: p.clone() for n, p in client.modules.named_parameters()}
    assert set(client.modules) == {"bottom", "auxiliary"} | ({"decoder"} if reconstruction != "none" else set())
    drive(parties)
    for name, parameter in client.modules.named_parameters():
        assert id(parameter) in optimized, name
        assert not torch.equal(before[name], parameter), name


def test_T4_9_after_the_clients_step_nothing_of_the_batchs_graph_is_alive():
    parties, _ = parties_of()
    client, method = parties.clients[0], parties.methods[0]
    alive = []
    forward = client.forward

    def spied(batch):
        z = forward(batch)
        alive.append(weakref.ref(z.main))
        return z

    client.forward = spied
    (batch, *_) = parties.batches[0](0, 0)
    steps = method.step(client, batch)
    message = next(steps)
    assert isinstance(message, Message)
    assert message.reply == "none"
    with pytest.raises(StopIteration):
        steps.send(None)
    del steps
    gc.collect()
    assert alive[0]() is None
    assert message.tensors["smashed"].grad_fn is None  # what the server may still hold has no graph


@pytest.mark.parametrize("lag", [1, 3, 100])
def test_T4_10_law7_the_server_may_lag_behind(lag):
    serial, late = drive(parties_of(num_clients=2)[0]), drive(parties_of(num_clients=2)[0], lag=lag)
    assert equal(client_part(serial), client_part(late))
    assert equal(serial.server.top, late.server.top)


def test_T4_11_a_shared_client_model_gives_the_same_weights_for_any_number_of_clients():
    _, recipe = parties_of(n=40)
    data = small_data(n=40)
    every = list(batches(recipe, data.train, torch.arange(40), 0)(0, 0))
    assert len(every) == 5
    ends = []
    for num_clients in (1, 5, 10):
        parties, _ = parties_of(num_clients=num_clients, rounds=2, n=40)
        # the same ten batches in the same order, dealt in turns
        deal = (every * 2) if num_clients == 10 else every
        rounds = {1: 2, 5: 2, 10: 1}[num_clients]
        parties.server.schedule.plan = parties.server.schedule.plan._replace(rounds=rounds)
        share = len(deal) // num_clients
        for k in range(num_clients):
            mine = deal[k * share : (k + 1) * share]
            parties.batches[k] = Batches(lambda r, s, mine=mine: iter(mine[s:]), share, share)
        ends.append(drive(parties))
    assert all(equal(client_part(ends[0]), client_part(other)) for other in ends[1:])
    assert all(equal(ends[0].server.top, other.server.top) for other in ends[1:])
