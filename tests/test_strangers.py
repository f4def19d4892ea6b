"""What strangers bring: dropout, tops that overwrite their input, tokens, tied weights, partitions of their own, broken rows."""

import json

import pytest
import torch
from conftest import equal, small_data, small_model, until_done
from torch import nn
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.cli import main
from cutlayer.compare import cells
from cutlayer.data.partition import Partition
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.run import train
from cutlayer.runs import Run, groups_of
from cutlayer.task import Task

pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = {"rounds": 2, "batch_size": 4, "num_threads": 1, "lr": 0.05}


def dropping(seed=0):
    torch.manual_seed(seed)
    bottom = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.5))
    return cl.Parts(
        bottom, nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 8), nn.ReLU()), nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 4))
    )


@pytest.mark.parametrize("scheme", ["vanilla", "dsl_seq", "splitfed_v1"])
def test_dropout_follows_the_seed_alone_and_survives_every_mark(scheme, tmp_path):
    clients = cl.partition.contiguous(small_data(n=20).train, num_clients=2)
    options = {"auxiliary": "mlp", "auxiliary_width": 8} if scheme == "dsl_seq" else {}
    recipe = make({"scheme": scheme, "num_clients": 2, "tail": "own", "checkpoint_every": 1, **options, **QUICK})
    whole = train(recipe, dropping(), clients, Task())
    torch.manual_seed(99)
    again = train(recipe, dropping(), clients, Task())
    parts = dropping()
    broken, _ = until_done(recipe, parts, clients, tmp_path, Task())
    for name in whole.modules:
        assert equal(whole.modules[name], again.modules[name]), name
        assert equal(whole.modules[name], broken.modules[name]), name


class Overwrites(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.linear = how, nn.Linear(16, 4)

    def forward(self, x):
        if self.how == "add":
            x += 1
        elif self.how == "relu":
            x = nn.functional.relu(x, inplace=True)
        elif self.how == "view":
            x = x.view(len(x), 4, 4).relu_().flatten(1)
        return self.linear(x)


@pytest.mark.parametrize("how", ["add", "relu", "view", "identity", "flatten"])
def test_a_top_that_overwrites_its_input_trains_and_is_the_uncut_model(how):
    torch.manual_seed(0)
    first = {"identity": nn.Identity(), "flatten": nn.Flatten()}.get(how)
    top = nn.Sequential(first, nn.ReLU(inplace=True), nn.Linear(16, 4)) if first else Overwrites(how)
    parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 16)), top)
    clients = cl.partition.contiguous(small_data(n=20).train, num_clients=1)
    split, whole = (cl.run(parts, clients, scheme=scheme, **QUICK) for scheme in ("vanilla", "centralised"))
    assert equal(split.modules["bottom"].state_dict(), whole.modules["bottom"].bottom.state_dict())
    assert equal(split.modules["top"].state_dict(), whole.modules["bottom"].top.state_dict())


def test_a_tail_that_overwrites_its_input_trains_and_is_the_uncut_model():
    torch.manual_seed(0)
    tail = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 4))
    parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 16)), nn.Sequential(nn.Tanh(), nn.Linear(16, 8)), tail)
    clients = cl.partition.contiguous(small_data(n=20).train, num_clients=1)
    split, whole = (cl.run(parts, clients, scheme=scheme, **QUICK) for scheme in ("u_shaped", "centralised"))
    for name in ("bottom", "top", "tail"):
        assert equal(split.modules[name].state_dict(), getattr(whole.modules["bottom"], name).state_dict())


def test_a_part_that_was_frozen_in_eval_mode_stays_so():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16).eval()
    parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 16)), nn.Sequential(norm, nn.Linear(16, 4)))
    clients = cl.partition.contiguous(small_data(n=20).train, num_clients=1)
    clock = {"speeds": "1e6", "server_speed": 1e6}
    for more in ({}, clock):
        result = cl.run(parts, clients, scheme="vanilla", **QUICK, **more)
        assert not result.modules["top"][0].training
        assert result.modules["top"][0].num_batches_tracked == 0


def test_tokens_train_to_the_end_and_tied_weights_are_saved(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randint(0, 20, (24, 6)), torch.randint(0, 4, (24,))
    data = cl.data.from_datasets(TensorDataset(x, y), TensorDataset(x, y), 4)
    top = nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48), nn.Linear(48, 4))
    top[3].weight = top[1].weight
    clients = cl.partition.contiguous(data.train, num_clients=2)
    for scheme in ("vanilla", "dsl_seq", "fedavg"):
        result = cl.run(cl.Parts(nn.Embedding(20, 8), top), clients, scheme=scheme, out=tmp_path / scheme, **QUICK)
        assert (tmp_path / scheme / "summary.json").exists()
        assert result.summary["macs_per_sample"]
        again = cl.run(cl.Parts(nn.Embedding(20, 8), top), clients, scheme=scheme, out=tmp_path / scheme, **QUICK)
        assert all(equal(result.modules[name], again.modules[name]) for name in result.modules)


def test_shares_that_do_not_fit_are_told():
    data, parts = small_data(n=20), cl.cut(small_model(), "stem")
    for shares in ((torch.arange(10), torch.tensor([], dtype=torch.long)), (torch.arange(10), torch.tensor([20]))):
        clients = Partition(data.train, shares, "mine", torch.ones(2, 4))
        with pytest.raises(BadInput, match="the share of client 1 is empty or leaves the 20 samples"):
            cl.run(parts, clients, **QUICK)
    with pytest.raises(BadInput, match="gave 2; they must be the same"):
        train(make({"num_clients": 3}), parts, cl.partition.iid(data.train, num_clients=2), Task())


@pytest.mark.parametrize(
    "fields",
    [
        {"method": 3},
        {"scheme": ["x"]},
        {"model": ":foo"},
        {"model": ".x:foo"},
        {"method": "auxiliary_loss", "aux_weight": float("nan")},
        {"method": "auxiliary_loss", "lambda_weight": float("inf")},
        {"rounds": True},
        {"method": "collections:OrderedDict"},
        {"schedule": "math:pi"},
        {"codec": {"smashed": "os.path:join"}},
    ],
    ids=str,
)
def test_what_is_no_name_or_no_number_is_bad_input(fields):
    with pytest.raises(BadInput):
        make(fields)


def test_one_bad_cell_does_not_stop_the_others(tmp_path, capsys):
    words = [
        "compare",
        "demo",
        "--num-train",
        "64",
        "--num-test",
        "32",
        "--rounds",
        "1",
        "--model",
        "resnet8",
        "--no-baselines",
    ]
    assert main([*words, "--over", "num_clients=2000,1", "--out", str(tmp_path)]) == 1
    assert "2000" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/summary.json"))) == 1
    assert (tmp_path / "report.html").exists()


def test_a_metric_may_give_a_tensor_and_there_must_be_one(tmp_path):
    data, parts = small_data(n=20), cl.cut(small_model(), "stem")
    task = cl.Task(metrics={"right": lambda output, y: (output.argmax(1) == y).float().mean()})
    cl.run(parts, cl.partition.iid(data.train, num_clients=1), task=task, out=tmp_path, **QUICK)
    assert isinstance(json.loads((tmp_path / "summary.json").read_text())["accuracy_final"], float)
    with pytest.raises(BadInput, match="without metrics"):
        cl.Task(metrics={})


def test_batches_of_one_are_all_taken_where_nothing_needs_more():
    torch.manual_seed(0)
    parts = cl.Parts(nn.Sequential(nn.Flatten(), nn.Linear(36, 8)), nn.Linear(8, 4))
    result = cl.run(parts, cl.partition.iid(small_data(n=20).train, num_clients=1), **{**QUICK, "batch_size": 1})
    assert result.summary["bytes"]["up"]["labels"]["payload"] == 2 * 20 * 8


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("model=os.path:join", "model = 'os.path:join' raised TypeError"),
        ("model=builtins:dict", "model = 'builtins:dict' gives a dict; it must give Module or Parts"),
        ("data=builtins:dict", "gives a dict; it must give Data"),
        ("task=builtins:dict", "gives a dict; it must give Task"),
        ("model=this_is_not_there:x", "cannot be imported"),
    ],
)
def test_what_an_outside_name_gives_is_checked(field, told, capsys):
    name, value = field.split("=")
    assert main(["run", "demo", f"--{name}", value, "--dry-run"]) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


def test_heads_can_be_compared_beside_backprop_and_no_cell_comes_twice():
    over = {"method": ["backprop", "auxiliary_loss"], "auxiliary": ["mlp", "linear"]}
    made = list(cells({}, over, [0, 1]))
    assert [(r.method, r.options.get("auxiliary"), r.seed) for r in made] == [
        ("backprop", None, 0), ("backprop", None, 1), ("auxiliary_loss", "mlp", 0), ("auxiliary_loss", "mlp", 1),
        ("auxiliary_loss", "linear", 0), ("auxiliary_loss", "linear", 1),
    ]  # fmt: skip
    with pytest.raises(BadInput, match="auxiliary is an option of method auxiliary_loss"):
        list(cells({}, {"auxiliary": ["mlp"]}, [0]))


def test_the_recipe_says_how_the_data_were_dealt():
    data, parts = small_data(n=80), cl.cut(small_model(), "stem")
    dealt = cl.partition.dirichlet(data.train, num_clients=2, alpha=0.3, seed=0)
    assert cl.run(parts, dealt, **QUICK).summary["recipe"]["alpha"] == 0.3
    other = cl.partition.dirichlet(data.train, num_clients=2, alpha=0.3, seed=7)
    assert cl.run(parts, other, **QUICK).summary["recipe"]["partition"] == "own"
    with pytest.raises(BadInput, match=r"2\.5 shares"):
        cl.partition.iid(data.train, num_clients=2.5)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "classes", "contiguous"])
def test_seeds_of_a_named_partition_are_put_together(name):
    data, parts = small_data(n=80), cl.cut(small_model(), "stem")
    runs = [cl.run(parts, getattr(cl.partition, name)(data.train, num_clients=2, seed=s), seed=s, **QUICK) for s in (0, 1)]
    assert {run.summary["recipe"]["partition"] for run in runs} == {name}
    (group,) = groups_of([Run(run.summary, run.records) for run in runs])
    assert len(group.runs) == 2
    assert runs[0].summary["digest"] != runs[1].summary["digest"]


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (
            lambda s: cl.partition.classes(s, groups=[[0, 3], [1, 2]]),
            lambda s: cl.partition.classes(s, groups=[[0, 2], [1, 3]]),
        ),
        (
            lambda s: cl.partition.dirichlet(s, 2, alpha=0.1, min_size=30),
            lambda s: cl.partition.dirichlet(s, 2, alpha=0.1, min_size=1),
        ),
        (lambda s: cl.partition.by_column(s, s.labels // 2), lambda s: cl.partition.by_column(s, s.labels % 2)),
    ],
    ids=["groups", "min_size", "by_column"],
)
def test_shares_that_no_recipe_deals_are_own_and_not_taken_for_others(mine, other, tmp_path):
    data, parts = small_data(n=80), cl.cut(small_model(), "stem")
    assert cl.run(parts, mine(data.train), out=tmp_path, **QUICK).summary["recipe"]["partition"] == "own"
    with pytest.raises(BadInput, match="holds another recipe"):
        cl.run(parts, other(data.train), out=tmp_path, **QUICK)


def test_tensors_tied_by_their_data_are_refused_on_two_sides():
    bottom, top = nn.Sequential(nn.Flatten(), nn.Linear(36, 36)), nn.Sequential(nn.Linear(36, 36), nn.Linear(36, 4))
    top[0].weight.data = bottom[1].weight.data
    with pytest.raises(BadInput, match="one tensor on both sides"):
        cl.run(cl.Parts(bottom, top), cl.partition.iid(small_data(n=20).train, num_clients=1), **QUICK)


def test_targets_that_no_output_stands_for_and_losses_that_are_no_number_are_told():
    y = torch.zeros(20, 2, dtype=torch.long)
    y[7, 1] = 4
    rows = TensorDataset(torch.randn(20, 36), y)
    data = cl.data.from_datasets(rows, rows, 4)
    two_heads = cl.Parts(nn.Linear(36, 8), nn.Sequential(nn.Linear(8, 8), nn.Unflatten(1, (4, 2))))
    with pytest.raises(BadInput, match="the loss cannot take"):
        cl.run(two_heads, cl.partition.contiguous(data.train, num_clients=1), **QUICK)
    parts = cl.cut(small_model(), "stem")
    per_sample = cl.Task(loss=lambda output, y: nn.functional.cross_entropy(output, y, reduction="none"))
    with pytest.raises(BadInput, match="must be one number"):
        cl.run(parts, cl.partition.iid(small_data(n=20).train, num_clients=1), task=per_sample, **QUICK)


def test_a_path_that_cannot_be_written_is_one_line(tmp_path, capsys):
    words = ["run", "demo", "--rounds", "1", "--num-train", "64", "--num-test", "32", "--model", "mlp", "--cut", "layer1"]
    run = tmp_path / "run"
    assert main([*words, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
