"""What is measured: memory by side against ResNet-110 worked out by hand, seconds by phase, bytes by role."""

import gc
import signal
import time

import pytest
import torch
from conftest import small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.cut import Smashed
from cutlayer.memory import owned_tensors, total_bytes
from cutlayer.meter import Meter
from cutlayer.saved_tensors import Kept, Saved, heard
from cutlayer.sides import add
from cutlayer.wire import Message, pack

MIB = 1 << 20
# MiB saved for backward at batch 128: client module, server as one module, whole network
TABLE = {"shallow": (402, 632, 1026), "middle": (562, 472, 1026), "deep": (722, 308, 1026)}


@pytest.mark.parametrize("at", TABLE)
def test_the_memory_table_of_resnet110_at_batch_16_scaled_by_8(at):
    model = cl.models.resnet110(10)
    parts = cl.cut(model, at)
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    client, server, whole = Saved(), Saved(), Saved()
    with client.watch():
        z = parts.bottom(x)
    with server.watch():
        loss = nn.functional.cross_entropy(parts.top(z.detach().requires_grad_()), y)
    assert client.now == client.peak
    measured = [8 * book.peak / MIB for book in (client, server)]
    del loss, z
    gc.collect()
    assert client.now == server.now == 0
    with whole.watch():
        kept = nn.functional.cross_entropy(model(x), y)
    measured.append(8 * whole.peak / MIB)
    assert kept.requires_grad
    for mine, theirs in zip(measured, TABLE[at], strict=True):
        assert mine == pytest.approx(theirs, rel=0.01)


def test_a_storage_is_counted_once_and_only_while_it_lives():
    book = Saved()
    x = torch.randn(8, 4, requires_grad=True)
    with book.watch():
        a = x.exp()  # saves its result
        b = a * a  # saves it twice more
    assert book.now == 8 * 4 * 4
    time.sleep(0.01)
    b.sum().backward()
    del a, b
    gc.collect()
    assert book.now == 0
    assert book.peak == 8 * 4 * 4
    assert book.byte_seconds >= 8 * 4 * 4 * 0.01


def test_parameters_are_not_counted_as_activations():
    book, layer = Saved(), nn.Linear(4, 3)
    x = torch.randn(5, 4)
    with book.watch():
        y = layer(x)
    assert book.now == 5 * 4 * 4
    assert y.requires_grad


def test_watching_changes_no_bit_and_keeps_nothing_alive():
    def gradients(watch):
        torch.manual_seed(0)
        model = small_model()
        x = torch.randn(4, 1, 6, 6)
        book = Saved()
        if watch:
            with book.watch():
                loss = model(x).sum()
        else:
            loss = model(x).sum()
        loss.backward()
        del loss
        gc.collect()
        assert book.now == 0
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_what_a_side_owns_is_parameters_buffers_and_optimizer_state_and_gradients_are_live_tensors():
    layer = nn.BatchNorm1d(10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    parameters, buffers = 2 * 40, 2 * 40 + 8
    assert total_bytes(owned_tensors([layer], optimizer)) == parameters + buffers
    layer(torch.randn(3, 10)).sum().backward()
    optimizer.step()
    assert total_bytes(owned_tensors([layer], optimizer)) == 2 * parameters + buffers


def test_memory_is_measured_by_side_and_decoupling_shortens_how_long_it_is_held():
    data = small_data(n=32)
    parts = cl.cut(cl.models.resnet8(4, in_channels=1), "shallow")
    clients = cl.partition.iid(data.train, num_clients=1)
    how = {"rounds": 1, "batch_size": 8, "num_threads": 1}
    plain = cl.run(parts, clients, scheme="vanilla", **how).summary
    decoupled = cl.run(parts, clients, scheme="dsl", auxiliary="pool_linear", **how).summary
    for summary in (plain, decoupled):
        for side in ("client", "server"):
            assert summary["peak_memory_bytes"][side] > 0
            assert summary["held_byte_seconds"][side] > 0
    z = Smashed.of(parts.bottom(torch.zeros(8, 1, 6, 6))).main
    book = Saved()
    with book.watch():
        kept = parts.bottom(torch.zeros(8, 1, 6, 6))
    parameters = sum(p.nbytes for p in parts.bottom.parameters())
    buffers = sum(b.nbytes for b in parts.bottom.buffers())
    assert z.shape == kept.shape
    # parameters and momentum, buffers, and what autograd saved beside other live tensors: nothing of the server's
    assert plain["kept_for_backward_bytes"]["client"] == book.peak
    assert plain["peak_memory_bytes"]["client"] > 2 * parameters + buffers + book.peak
    assert decoupled["kept_for_backward_bytes"]["client"] >= plain["kept_for_backward_bytes"]["client"]


def test_seconds_are_split_by_phase_and_add_up():
    data = small_data(n=64)
    clients = cl.partition.iid(data.train, num_clients=1)
    summary = cl.run(cl.cut(small_model(), "stage1"), clients, rounds=3, batch_size=8, num_threads=1).summary
    seconds = summary["seconds"]
    assert all(seconds[name] > 0 for name in seconds)
    work = sum(seconds[name] for name in seconds if name != "wait")
    assert work < summary["seconds_total"]
    # the client waits while the server works and the reply is packed
    assert seconds["wait"] >= seconds["server_forward"] + seconds["server_backward"]


def test_a_message_is_counted_by_direction_client_and_role_and_its_frame_by_its_first_role():
    meter = Meter()
    packed = pack(Message("smashed", {"smashed": torch.zeros(2, 3), "labels": torch.zeros(2, dtype=torch.long)}, client=4), {})
    meter.count("up", packed)
    empty = pack(Message("go", client=4), {})
    meter.count("down", empty)
    assert meter.bytes_by_role() == {
        "up": {"smashed": {"payload": 24, "wire": packed.nbytes - 16}, "labels": {"payload": 16, "wire": 16}},
        "down": {"go": {"payload": 0, "wire": empty.nbytes}},
    }
    assert meter.bytes_by_client() == {4: packed.nbytes + empty.nbytes}
    fresh = Meter()
    fresh.load(meter.state())
    assert fresh.bytes_by_role() == meter.bytes_by_role()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the allocator's figures cannot be read")
@pytest.mark.parametrize("scheme", ["vanilla", "dsl"])
def test_memory_on_cuda_is_the_allocators_growth_by_side(scheme):
    data = small_data(n=32)
    clients = cl.partition.iid(data.train.to("cuda"), num_clients=1)
    summary = cl.run(cl.cut(small_model(), "stage1"), clients, scheme=scheme, rounds=2, batch_size=8, device="cuda").summary
    assert all(summary["peak_memory_bytes"][side] > 0 for side in ("client", "server"))


def test_a_u_shaped_server_is_measured_over_both_halves_of_its_step():
    data = small_data(n=32)
    clients = cl.partition.iid(data.train, num_clients=1)
    how = {"rounds": 1, "batch_size": 8, "num_threads": 1}
    parts = cl.cut(small_model(), "stem", "hidden")
    summary = cl.run(parts, clients, tail="hidden", **how).summary
    book = Saved()
    with book.watch():
        kept = parts.top(parts.bottom(torch.zeros(8, 1, 6, 6)).detach().requires_grad_())
    owned = 2 * sum(p.nbytes for p in parts.top.parameters()) + sum(b.nbytes for b in parts.top.buffers())
    assert kept.requires_grad
    assert summary["kept_for_backward_bytes"]["server"] == book.peak
    assert summary["peak_memory_bytes"]["server"] > owned + book.peak


def test_a_graph_that_outlives_its_step_is_told():
    from cutlayer.findings import findings
    from cutlayer.runs import Run

    data = small_data(n=32)
    clients = cl.partition.iid(data.train, num_clients=1)
    parts = cl.cut(small_model(), "stage1")
    kept = []

    def remembering(output, y):
        loss = nn.functional.cross_entropy(output, y)
        kept.append(output.exp())  # saves its result for a backward that never comes
        return loss

    how = {"rounds": 1, "batch_size": 8, "num_threads": 1}
    sound = cl.run(parts, clients, **how)
    leaking = cl.run(parts, clients, task=cl.Task(loss=remembering), **how)
    assert sound.summary["bytes_left_after_step"] == {"client": 0, "server": 0}
    assert leaking.summary["bytes_left_after_step"]["server"] > 0
    assert any("still holds" in text for text in findings(Run(leaking.summary, leaking.records)))
    assert not any("still holds" in text for text in findings(Run(sound.summary, sound.records)))


def test_a_whole_batch_is_measured_and_the_server_too_where_not_every_batch_is_sent():
    parts = cl.cut(small_model(), "stage1")
    how = {"batch_size": 16, "num_threads": 1, "rounds": 2}
    short, whole = (cl.partition.iid(small_data(n=n).train, num_clients=1) for n in (20, 32))
    peaks = [cl.run(parts, clients, **how).summary["peak_memory_bytes"] for clients in (short, whole)]
    assert peaks[0] == peaks[1]
    sparse = cl.run(parts, whole, scheme="dsl", auxiliary="linear", send_every=2, **how).summary
    assert sparse["peak_memory_bytes"]["server"] > 0
    assert sparse["held_byte_seconds"]["server"] > 0


def test_the_peak_is_that_of_the_largest_step_and_of_the_largest_client_and_not_of_the_last():
    layer, other = nn.Linear(4, 3), torch.zeros(10)
    each = []
    for client, steps in enumerate(([[8, 5], [3]], [[2]])):  # rows, one after the other within a step
        meter = Meter()
        for rows in steps:
            with meter.step("client", client, True, lambda: [*layer.parameters(), other]):
                for n in rows:
                    with meter.phase("client_forward", client):
                        y = layer(torch.randn(n, 4))
                    assert y.requires_grad
                    del y
        each.append(meter)
    assert [meter.kept["client"] for meter in each] == [8 * 4 * 4, 2 * 4 * 4]  # a linear layer keeps its input
    assert [meter.peak["client"] for meter in each] == [100 + 8 * 7 * 4, 100 + 2 * 7 * 4]  # its input and output live
    server = Meter()
    for meter in each:
        add(server, meter.state())
    assert (server.kept["client"], server.peak["client"]) == (8 * 4 * 4, 100 + 8 * 7 * 4)


def test_an_interrupt_inside_of_a_finalizer_is_heard():
    """Python swallows what a finalizer raises, and the run would go on."""

    class Book:
        def release(self, address):
            signal.raise_signal(signal.SIGINT)

    def let_go():
        kept = Kept(torch.zeros(1), Book(), 0)
        del kept
        for _ in range(500):
            time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    try:
        with heard(), pytest.raises(KeyboardInterrupt):
            let_go()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_client_is_measured_in_a_step_that_sends():
    """Where the tail is the client's too, a step that sends nothing does not use it."""
    parts, clients = (
        cl.cut(small_model(), "stage1.block1", "hidden"),
        cl.partition.contiguous(small_data(n=40).train, num_clients=1),
    )
    how = {
        "method": "auxiliary_loss",
        "auxiliary": "pool_linear",
        "rounds": 1,
        "batch_size": 8,
        "num_threads": 1,
        "momentum": 0.9,
    }
    peaks = [cl.run(parts, clients, send_every=every, **how).summary["peak_memory_bytes"]["client"] for every in (1, 2, 3, 9)]
    assert len(set(peaks)) == 1
