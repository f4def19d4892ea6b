"""A client that has left: the others go on as if it had never been asked, whatever the schedule, and it may come back."""

import pytest
from conftest import equal, small_data, small_model

import cutlayer as cl
from cutlayer.building import num_steps
from cutlayer.data.partition import Partition
from cutlayer.fit import fitted
from cutlayer.parties import build
from cutlayer.program import program
from cutlayer.recipes.recipe import make
from cutlayer.task import Task
from cutlayer.transports import inprocess
from cutlayer.wire import Message

QUICK = {"rounds": 3, "batch_size": 4, "num_threads": 1, "lr": 0.05}
SCHEDULES = {
    "relay": {},
    "v1": {"schedule": "parallel", "server_copies": True},
    "v2": {"schedule": "parallel", "sync_every": "2 batches"},
    "batch-major": {"schedule": "parallel", "server_order": "batch_major"},
    "concatenated": {"schedule": "parallel", "server_order": "concatenated"},
    "fedasync": {"schedule": "asynchronous"},
    "fedbuff": {"schedule": "asynchronous", "merge": "fedbuff", "buffer_size": 2},
    "fedbuff-copies": {"schedule": "asynchronous", "merge": "fedbuff", "buffer_size": 2, "server_copies": True},
}


def parties(num_clients, **fields):
    """Return parties of so many of three equal shares, and their programs."""
    train = small_data(n=36).train
    whole = cl.partition.contiguous(train, num_clients=3)
    clients = Partition(train, whole.shares[:num_clients], "own", whole.counts[:num_clients])
    recipe = make({**QUICK, **fields, "num_clients": num_clients})
    parts = cl.cut(small_model(), "stage1.block1")
    made = build(recipe, parts, clients, train, fitted(Task(num_classes=4), recipe, parts, train), lambda: None)
    rounds = []
    made.server.on_round = lambda server: rounds.append(sorted(server.counts))
    owners = zip(made.clients, made.methods, made.batches, strict=True)
    assert num_steps(recipe, clients.shares) == 9 * num_clients
    return made, {client.id: program(client, method, its) for client, method, its in owners}, rounds


def finish(made, programs):
    inprocess.run(programs, made.server, made.ends, made.meter)
    return made.modules()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_that_a_client_left_before_it_began_is_the_run_of_the_others(name):
    fields = SCHEDULES[name]
    made, programs, rounds = parties(3, **fields)
    del programs[2]
    assert made.server.handle(Message("left", client=2)) == []
    mine = finish(made, programs)
    assert len(rounds) == 3
    if name in ("v2", "batch-major"):  # whose order among three is drawn otherwise than among two
        return
    others, programs, _ = parties(2, **fields)
    theirs = finish(others, programs)
    assert all(equal(mine[part], theirs[part]) for part in theirs)


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_but_one_may_leave_and_every_mark_knows_it(name):
    made, programs, rounds = parties(3, **SCHEDULES[name])
    for k in (0, 2):
        made.server.handle(Message("left", client=k))
        del programs[k]
    again, _, _ = parties(3, **SCHEDULES[name])
    again.server.load(made.server.state())
    assert again.server.schedule.absent == {0, 2}
    finish(made, programs)
    assert len(rounds) == 3


@pytest.mark.parametrize("name", SCHEDULES)
def test_who_comes_back_takes_part_again(name):
    made, programs, rounds = parties(3, **SCHEDULES[name])
    made.server.handle(Message("left", client=2))
    finish(made, programs)  # it says hello as all do, and joins in the second round
    assert made.server.schedule.absent == set()
    assert len(rounds) == 3
    assert made.clients[2].step > 0
