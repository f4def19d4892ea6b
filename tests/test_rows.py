"""Rows are joined, stored, sampled and split only where they are samples."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.errors import BadInput
from cutlayer.fit import fitted
from cutlayer.recipes.recipe import make
from cutlayer.rows import compare_layouts, join_rows

pytestmark = pytest.mark.usefixtures("no_figures")
T = 4  # as many positions as samples of the larger trial batch, and as a training batch
QUICK = {"rounds": 1, "batch_size": T, "num_threads": 1, "lr": 0.05}


class TimeFirst(nn.Module):
    """x (N, T, 3) to (T, N, 8)."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 8)

    def forward(self, x):
        return self.rnn(x.transpose(0, 1))[0]


class LastStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.linear = nn.GRU(8, 8), nn.Linear(8, 3)

    def forward(self, z):
        return self.linear(self.rnn(z)[0][-1])


class WithTable(nn.Module):
    """Gives a table (T, 8) beside main (N, T, 8)."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, x):
        return {"main": torch.tanh(self.linear(x)), "table": torch.linspace(0, 1, T * 8).view(T, 8)}


class UsesTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, z, table):
        return self.linear((z * table).mean(1))


def time_first():
    torch.manual_seed(0)
    return cl.Parts(TimeFirst(), LastStep())


def with_table():
    torch.manual_seed(0)
    return cl.Parts(WithTable(), UsesTable())


def source(n=24, test=None):
    x, y = torch.randn(n, T, 3, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3
    held_out = TensorDataset(x.repeat(50, 1, 1)[:test], y.repeat(50)[:test]) if test else TensorDataset(x, y)
    return cl.data.from_datasets(TensorDataset(x, y), held_out, 3).train


JOINING = {
    "concatenated": (2, {"scheme": "psl", "server_order": "concatenated"}, "server_order = 'concatenated' joins"),
    "backward_share": (1, {"scheme": "dsl", "backward_share": 0.5, "auxiliary": f"{__name__}:head"}, "backward_share splits"),
    "fsl_sage": (1, {"scheme": "fsl_sage", "auxiliary": f"{__name__}:head"}, "method 'fsl_sage' keeps rows"),
    "gaussian_noise": (
        1,
        {"scheme": "vanilla", "codec": {"smashed": "gaussian_noise@0:1.0"}},
        "codec smashed = .* row as a sample",
    ),
    "top_k": (1, {"scheme": "vanilla", "codec": {"smashed": "top_k@0.1+float16"}}, "codec smashed = .* row as a sample"),
    "batch_merge": (1, {"scheme": "vanilla", "codec": {"smashed": "batch_merge@0.5"}}, "codec batch_merge merges rows"),
}


@pytest.mark.parametrize(("num_clients", "fields", "why"), JOINING.values(), ids=JOINING)
@pytest.mark.parametrize(("parts", "fault"), [(time_first, "its batch is axis 1"), (with_table, "it has no batch axis")])
def test_rows_that_are_no_samples_are_not_joined_though_sizes_agree(parts, fault, num_clients, fields, why):
    with pytest.raises(BadInput, match=f"{why}.*{fault}"):
        cl.run(parts(), cl.partition.iid(source(), num_clients), **QUICK, **fields)


def test_diagnostics_need_a_row_for_each_sample():
    with pytest.raises(BadInput, match=r"diagnose_every compares samples row by row.*its batch is axis 1"):
        cl.run(time_first(), cl.partition.iid(source(), 1), scheme="vanilla", diagnose_every=1, **QUICK)


def test_a_regressor_that_reads_labels_needs_a_row_for_each():
    with pytest.raises(BadInput, match=r"the regressor reads activations and labels row by row.*its batch is axis 1"):
        cl.run(time_first(), cl.partition.iid(source(), 1), scheme="dni", **QUICK)


@pytest.mark.parametrize("name", ["linear", "mlp", "attention"])
def test_heads_of_the_table_refuse_a_batch_on_another_axis(name):
    with pytest.raises(BadInput, match="choose another head"):
        cl.run(time_first(), cl.partition.iid(source(), 1), scheme="dsl", auxiliary=name, **QUICK)


@pytest.mark.parametrize("transport", ["grpc", "mpi"])
def test_a_server_elsewhere_needs_rows_that_it_can_count(transport):
    with pytest.raises(BadInput, match=f"transport = '{transport}' counts the rows.*its batch is axis 1"):
        fitted(cl.Task(), make({"scheme": "vanilla", "transport": transport}), time_first(), source())


@pytest.mark.parametrize("parts", [time_first, with_table])
@pytest.mark.parametrize("fields", [{"scheme": "vanilla"}, {"scheme": "async_loss", "codec": {}}, {"scheme": "hosl"}], ids=str)
def test_one_message_a_step_needs_no_rows(parts, fields):
    assert cl.run(parts(), cl.partition.iid(source(), 2), **QUICK, **fields).records


@pytest.mark.parametrize("parts", [time_first, with_table])
def test_a_cut_without_rows_trains_as_the_uncut_network(parts):
    whole, share = parts(), cl.partition.contiguous(source(), 1)
    result = cl.run(whole, share, scheme="vanilla", **QUICK)
    uncut = cl.run(parts(), share, scheme="centralised", **QUICK)
    for side in ("bottom", "top"):
        mine, theirs = getattr(result.parts, side).state_dict(), uncut.modules["bottom"].state_dict()
        assert all(torch.equal(tensor, theirs[f"{side}.{name}"]) for name, tensor in mine.items())


def test_samples_are_counted_along_the_batch_axis():
    from cutlayer.steps import count

    task = fitted(cl.Task(), make({"scheme": "vanilla"}), time_first(), source())
    assert (task.cut_axis, task.cut_shape, task.ragged) == (1, (T, 8), False)
    assert count({"main": torch.zeros(T, 7, 8)}, task) == 7


class Outputs(nn.Module):
    """Logits (3, N), the batch behind."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, z):
        return self.linear(z.mean(1)).T


def behind(output, y):
    return F.cross_entropy(output.T, y)


def test_evaluation_joins_only_outputs_with_a_row_for_each_sample():
    task = cl.Task(loss=behind, metrics={"accuracy": lambda output, y: float((output.argmax(0) == y).float().mean())})
    parts = cl.Parts(nn.Sequential(nn.Linear(3, 8)), Outputs())
    assert 0 <= cl.run(parts, cl.partition.iid(source(), 1), task=task, scheme="vanilla", **QUICK).records[-1]["accuracy"] <= 1
    with pytest.raises(BadInput, match=r"evaluation joins the outputs .*'output' of shape .* its batch is axis 1"):
        cl.run(parts, cl.partition.iid(source(test=501), 1), task=task, scheme="vanilla", **QUICK)


class Flipped:
    """A source whose targets are (T, N)."""

    def __init__(self, inner):
        self.inner, self.labels, self.num_classes, self.held_out = inner, inner.labels, 3, None
        self.input_shape, self.sample_bytes, self.to_unit, self.to = (T, 3), 48, inner.to_unit, lambda device: self

    def __len__(self):
        return len(self.inner)

    def batch(self, index, generator):
        batch = self.inner.batch(index, generator)
        return batch._replace(y=batch.y.expand(T, -1))


def test_targets_without_a_row_for_each_sample_are_refused():
    task = cl.Task(loss=lambda output, y: F.cross_entropy(output, y[0]))
    with pytest.raises(BadInput, match="its batch is axis 1, not axis 0, and samples are counted by it"):
        fitted(
            task,
            make({"scheme": "vanilla"}),
            cl.Parts(nn.Sequential(nn.Linear(3, 8), nn.Flatten()), nn.Linear(32, 3)),
            Flipped(source()),
        )


LAYOUTS = {
    "rows": ((2, 4), (4, 4), 0, None),
    "time first, as many positions as samples": ((4, 2, 8), (4, 4, 8), 1, "axis 1"),
    "table": ((4, 8), (4, 8), None, "no batch axis"),
    "number": ((), (), None, "no batch axis"),
    "nodes": ((9, 3), (21, 3), None, None),
    "padded": ((2, 9, 3), (4, 11, 3), 0, "sizes differ"),
    "pairs of samples": ((2, 2), (4, 4), 0, "sizes differ"),
}


@pytest.mark.parametrize(("few", "many", "axis", "fault"), LAYOUTS.values(), ids=LAYOUTS)
def test_the_batch_axis_is_the_one_that_follows_the_batch_size(few, many, axis, fault):
    layout = compare_layouts(torch.empty(few), torch.empty(many), (2, 4))
    assert layout.axis == axis
    assert layout.fault is None if fault is None else fault in layout.fault


def test_rows_of_unlike_sizes_are_refused_in_one_line():
    with pytest.raises(BadInput, match=r"'smashed' of shapes \(2, 3\), \(2, 4\): rows of unlike sizes cannot be joined"):
        join_rows([torch.zeros(2, 3), torch.zeros(2, 4)], "smashed")


def test_a_number_may_cross_beside_the_activations():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(3, 8), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return {"main": self.linear(x).mean(1), "scale": self.scale * 1}

    class Top(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 3)

        def forward(self, z, scale):
            return self.linear(z) * scale

    result = cl.run(cl.Parts(Scaled(), Top()), cl.partition.iid(source(), 1), scheme="vanilla", **QUICK)
    assert result.records[-1]["train_loss"] == pytest.approx(math.log(3), abs=0.5)


def head(task, depth, width):
    """A head for (N, T, 8) and (T, N, 8), which gives (N, 3) for the former."""
    return nn.Sequential(nn.Linear(8, 3))
