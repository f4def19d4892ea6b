"""T6.*, T7.*: local losses between several clients (Han et al., CSE-FSL), and FSL-SAGE, whose head the server aligns."""

import copy
import dataclasses

import pytest
import torch
from conftest import equal, small_data, small_model
from torch import nn

import cutlayer as cl
from cutlayer.aligned import Aligned, batches
from cutlayer.auxiliary import auxiliary_loss
from cutlayer.building import training
from cutlayer.cut import Smashed
from cutlayer.errors import BadInput
from cutlayer.methods.fsl_sage import FslSage, FslSageOptions
from cutlayer.program import Sends
from cutlayer.recipes.recipe import make
from cutlayer.schedules import Plan
from cutlayer.schedules.parallel import Parallel, ParallelOptions
from cutlayer.server import Server
from cutlayer.task import Batch
from cutlayer.wire import Message

QUICK = {"rounds": 3, "batch_size": 4, "num_threads": 1, "lr": 0.05}
HEAD = {"auxiliary": "mlp", "auxiliary_width": 8, "auxiliary_depth": 1}


def run(scheme, num_clients=2, n=24, at="stage1.block1", **fields):
    data = small_data(n=n)
    clients = cl.partition.contiguous(data.train, num_clients=num_clients)
    return cl.run(cl.cut(small_model(), at), clients, scheme=scheme, **{**QUICK, **HEAD, **fields})


@pytest.mark.parametrize("scheme", ["dsl_fed", "cse_fsl", "locsplitfed"])
def test_T6_1_T6_2_with_one_client_and_every_batch_sent_it_is_decoupled_split_learning(scheme):
    dsl, fed = run("dsl", 1), run(scheme, 1, send_every=1)
    assert all(equal(dsl.modules[name], fed.modules[name]) for name in ("bottom", "auxiliary", "top"))


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_T6_3_T6_4_bytes_follow_the_period_and_the_client_does_not(every):
    one, other = run("cse_fsl", send_every=1), run("cse_fsl", send_every=every)
    sent = 3 * -(-3 // every)  # of each client: rounds, and of their batches every so many
    z = 4 * 4 * 6 * 6 * 4
    assert other.summary["bytes"]["up"]["smashed"]["payload"] == 2 * sent * z
    assert all(equal(one.modules[name], other.modules[name]) for name in ("bottom", "auxiliary"))
    assert equal(one.modules["top"], other.modules["top"]) == (every == 1)


def test_T6_4_a_period_longer_than_a_round_sends_once_in_every_round():
    result = run("fsl_sage", send_every=100, align_rounds=0)
    assert result.summary["bytes"]["up"]["smashed"]["payload"] == 2 * 3 * 4 * 4 * 6 * 6 * 4


def test_T6_5_one_plain_step_each_and_the_average_is_one_step_on_the_mean_gradient():
    torch.manual_seed(0)
    bottom = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU())
    data = small_data(n=22)
    clients = cl.partition.by_column(data.train, (torch.arange(22) >= 14).long())
    parts = cl.Parts(bottom, nn.Linear(8, 4))
    fields = {**QUICK, "rounds": 1, "batch_size": 14, "lr": 0.1, "momentum": 0.0, "auxiliary": "linear"}
    before = cl.run(parts, clients, scheme="cse_fsl", **{**fields, "lr": 0.0}).modules
    after = cl.run(parts, clients, scheme="cse_fsl", **fields).modules
    batch = data.train.batch(torch.arange(22), None)
    auxiliary_loss(before["auxiliary"], Smashed(before["bottom"](batch.x)), batch, cl.Task()).backward()
    for name in ("bottom", "auxiliary"):
        for (key, new), old in zip(after[name].named_parameters(), before[name].parameters(), strict=True):
            assert torch.allclose(new, old - 0.1 * old.grad, atol=1e-6, rtol=0), key


# FSL-SAGE with a head that is the top, given to the client before every step of the top


def twin(task, depth, width):
    return copy.deepcopy(cl.cut(small_model(), "stage1.block1").top)


class Copied(Aligned):
    def handle(self, server: Server, messages):
        now = {f"auxiliary/{k}": v.clone() for k, v in server.top.state_dict().items()}
        super().handle(server, [dataclasses.replace(m, reply="none") for m in messages])
        (message,) = messages
        return [dataclasses.replace(message, kind="auxiliary", tensors=now)]


class EveryStep(FslSage):
    @staticmethod
    def server_part(options):
        return Copied(options)

    @staticmethod
    def sends(options, round, step, seen):
        return Sends(True, True)


def test_T7_1_with_the_top_for_a_head_before_every_step_it_is_SplitFed_V2():
    fields = {"scheme": "splitfed_v2", "weight_decay": 1e-3}
    data = small_data(n=24)
    clients = cl.partition.contiguous(data.train, num_clients=2)
    parts = cl.cut(small_model(), "stage1.block1")
    fed = cl.run(parts, clients, **{**QUICK, **fields})
    own = {"method": "test_local_losses:EveryStep", "auxiliary": "test_local_losses:twin", "send_every": 1}
    sage = cl.run(parts, clients, **{**QUICK, **fields, **own})
    assert all(equal(fed.modules[name], sage.modules[name]) for name in ("bottom", "top"))
    assert "cut_grad" not in sage.summary["bytes"]["down"]


def server_with(options, head_is_top):
    seen = []

    class Spy(Aligned):
        def align(self, server, client):
            head, _ = self._head(server, client)
            if head_is_top:
                head.load_state_dict(server.top_of(client).state_dict())
            was = [copy.deepcopy(server.top.state_dict())]
            for _ in range(3):
                before = server.totals.get("alignment_error", torch.zeros(())).clone()
                found = super().align(server, client)
                seen.append(float(server.totals["alignment_error"] - before))
            assert equal(was[0], server.top.state_dict())  # running statistics too
            return found

    return Spy(options), seen


@pytest.mark.parametrize("batch", [1000, 3])
def test_T7_2_alignment_lowers_its_error_on_a_fixed_memory_and_is_zero_for_the_top_itself(batch, monkeypatch):
    for head_is_top in (False, True):
        spies = []

        def part(options, head_is_top=head_is_top, spies=spies):
            spies.append(server_with(options, head_is_top))
            return spies[-1][0]

        monkeypatch.setattr(FslSage, "server_part", staticmethod(part))
        head = {"auxiliary": "test_local_losses:twin"} if head_is_top else {}
        run("fsl_sage", 1, rounds=1, n=12, batch_size=12, align_epochs=20, align_batch=batch, align_lr=1e-2, **head)
        errors = spies[0][1]
        assert len(errors) == 3
        if not head_is_top:
            assert errors[2] < errors[0]
        elif batch == 1000:
            assert errors[0] < 1e-6  # BatchNorm sees the memory in both, and then it moves by rounding only


def flat_linear(task, depth, width):
    torch.manual_seed(1)
    return nn.Linear(8, 4)


def test_T7_2_estimates_of_small_batches_are_scaled_to_the_memory(monkeypatch):
    """Without BatchNorm a batch's rows have the gradient that they have in the memory, so the top itself errs by rounding only."""
    spies = []

    def part(options):
        spies.append(server_with(options, True))
        return spies[-1][0]

    monkeypatch.setattr(FslSage, "server_part", staticmethod(part))
    parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 8)), flat_linear(None, 0, 0))
    clients = cl.partition.contiguous(small_data(n=12).train, num_clients=1)
    own = {
        "auxiliary": "test_local_losses:flat_linear",
        "batch_size": 12,
        "align_epochs": 1,
        "align_batch": 5,
        "align_lr": 1e-9,
    }
    cl.run(parts, clients, scheme="fsl_sage", **{**QUICK, **own, "rounds": 1})
    assert len(spies[0][1]) == 3
    assert all(error < 1e-8 for error in spies[0][1])


def test_the_peak_of_the_server_holds_the_alignment():
    still, aligned = (run("fsl_sage", 1, n=24, send_every=1, align_rounds=every, align_epochs=1) for every in (0, 1))
    assert aligned.summary["peak_memory_bytes"]["server"] > 2 * still.summary["peak_memory_bytes"]["server"]
    assert aligned.summary["bytes_left_after_step"]["server"] == 0


def test_T7_3_never_aligned_it_is_CSE_FSL():
    cse, sage = run("cse_fsl", send_every=3), run("fsl_sage", send_every=3, align_rounds=0, server_order="arrival")
    assert all(equal(cse.modules[name], sage.modules[name]) for name in ("bottom", "auxiliary", "top"))
    assert cse.summary["bytes"] == sage.summary["bytes"]


def test_T7_4_heads_and_averages_come_down_and_no_gradient_does():
    result = run("fsl_sage", rounds=5, align_rounds=2, align_epochs=2, send_every=2)
    down = result.summary["bytes"]["down"]
    head = sum(t.nbytes for t in result.parts.bottom.state_dict().values())
    assert down["weights"]["payload"] == 2 * 4 * head
    width = 4 * 2 * 2
    entries = (width * 8 + 8) + (4 * 8 * 4 + 8) // 4 + (8 * 4 + 4)  # linear, norm (its counter is int64), linear
    assert down["auxiliary"]["payload"] == 2 * 3 * entries * 4
    assert {role for role, cell in down.items() if cell["payload"]} == {"weights", "auxiliary"}
    assert result.summary["bytes"]["up"]["smashed"]["payload"] == 2 * 5 * 2 * (4 * 4 * 6 * 6 * 4)


def test_T7_5_the_clients_step_leaves_the_head_as_it_is():
    client = build_client()
    batch = Batch(torch.randn(4, 1, 6, 6), torch.arange(4))
    z = client.forward(batch)
    before = copy.deepcopy(client.modules["auxiliary"].state_dict())
    grad = client.gradient("auxiliary", z, batch)
    client.update(z=z, cut_grad=grad)
    assert equal(before, client.modules["auxiliary"].state_dict())
    assert all(p.grad is None for p in client.modules["auxiliary"].parameters())
    assert not {id(p) for p in client.modules["auxiliary"].parameters()} & {
        id(p) for group in client.optimizer.param_groups for p in group["params"]
    }
    leaf = z.main.detach().requires_grad_()
    auxiliary_loss(client.modules["auxiliary"], Smashed(leaf), batch, client.task).backward()
    assert torch.equal(leaf.grad, grad["cut_grad"])


def build_client():
    from cutlayer.client import Client

    parts = cl.cut(small_model(), "stage1.block1")
    task = cl.Task(num_classes=4, cut_shape=(4, 6, 6))
    client = Client(0, {"bottom": parts.bottom}, training(make({"lr": 0.05})), task)
    FslSage(FslSageOptions(**HEAD), client)
    return client


def test_fsl_sage_learns_and_its_head_points_where_the_top_does():
    result = run("fsl_sage", n=48, rounds=8, align_rounds=2, align_epochs=100, align_lr=1e-2, send_every=1)
    assert result.records[-1]["train_loss"] < result.records[0]["train_loss"]
    errors = [record["alignment_error"] for record in result.records if "alignment_error" in record]
    assert len(errors) == 4
    assert max(errors) < 0.9  # 1 is what a head that says nothing has


def test_who_is_first_drawn_after_the_heads_were_aligned_asks_for_one(monkeypatch):
    aligned, align = [], Aligned.align

    def spied(self, server, client):
        aligned.append((server.schedule.round, client))
        return align(self, server, client)

    monkeypatch.setattr(Aligned, "align", spied)
    run("fsl_sage", num_clients=4, n=32, rounds=8, participation=0.5, align_rounds=10, align_epochs=1)
    assert sorted(client for _, client in aligned) == [0, 1, 2, 3]
    assert max(round for round, _ in aligned) > 0


def test_a_server_that_goes_back_to_a_mark_has_the_heads_of_the_mark():
    part = Aligned(FslSageOptions(**HEAD, align_epochs=2))
    server = Server(
        nn.Flatten(), Parallel(ParallelOptions(), Plan(1, 2)), training(make({})), cl.Task(num_classes=4, cut_shape=(4,))
    )
    server.top = nn.Linear(4, 4)
    draw = torch.Generator().manual_seed(0)
    part.keep(Message("smashed", {"smashed": torch.randn(5, 4, generator=draw), "labels": torch.arange(5) % 4}))
    part.align(server, 0)
    mark = copy.deepcopy(part.state())
    before = copy.deepcopy(part.align(server, 0).state_dict())
    part.load(copy.deepcopy(mark))
    assert str(part.state()) == str(mark)
    assert equal(part.align(server, 0).state_dict(), before)


def test_one_sample_that_an_alignment_leaves_over_goes_with_the_others():
    assert [len(part) for part in batches(torch.arange(9), 4)] == [4, 5]
    assert [len(part) for part in batches(torch.arange(10), 4)] == [4, 4, 2]
    assert [len(part) for part in batches(torch.arange(1), 4)] == [1]


def test_personal_heads_of_one_shared_model_are_refused():
    with pytest.raises(BadInput, match="aligned heads are personal"):
        make({"method": "fsl_sage", "schedule": "relay", "hand_over": "shared", "num_clients": 2})


def test_dropout_while_heads_are_aligned_is_drawn_from_the_seed():
    model, data = small_model(), small_data()
    model.hidden.append(nn.Dropout(0.5))
    clients = cl.partition.contiguous(data.train, num_clients=2)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        result = cl.run(cl.cut(model, "stage1.block1"), clients, scheme="fsl_sage", align_rounds=1, **{**QUICK, **HEAD})
        found.append(result.modules["bottom"].state_dict())
    assert equal(*found)
