"""Bad input is one line and exit code 2, a failed run one line and 1, and nothing that was done before is lost."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import QUICK, small_data, small_model
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.cli import main
from cutlayer.errors import BadInput, RunFailed

BAD = [
    (["run", "dmeo"], "unknown recipe 'dmeo'. Did you mean 'demo'"),
    (["run", "demo", "--lr", "fast"], "lr = 'fast'"),
    (["run", "demo", "--cut", "stage9"], "unknown cut 'stage9'"),
    (["run", "demo", "--model", "resnt20"], "Did you mean 'resnet20'"),
    (["run", "demo", "--data", "didgits"], "Did you mean 'digits'"),
    (["run", "demo", "--num-clients", "2000"], "2000"),
    (["run", "demo", "--num-clients", "40", "--partition", "dirichlet", "--alpha", "0.01"], "raise alpha"),
    (["run", "demo", "--num-train", "9999"], "9999 samples are wanted"),
    (["run", "demo", "--data", "cifar10", "--data-dir", "/nowhere"], "'/nowhere' is no folder"),
    (["run", "demo", "--codec", "smashed"], "role=name"),
    (["run", "demo", "--device", "cuda:99"], "cuda:99"),
    (["run", "demo", "--data", "breast_cancer"], "not inputs of shape (30,); use mlp"),
    (["run", "demo", "--lr", "inf"], "lr = 'inf'"),
    (["run", "demo", "--out", "/proc/nowhere"], "'/proc/nowhere' cannot be written"),
    (["run", "demo", "--cut", "pool", "--tail", "stem"], "unknown tail 'stem'. Legal: classifier"),
    (["compare", "demo", "--over", "partition=iid,foo"], "unknown partition 'foo'"),
    (["compare", "demo", "--over", "method"], "FIELD=A,B,C"),
    (["compare", "demo", "--over", "methd=backprop"], "Did you mean 'method'"),
    (["compare", "demo", "--seeds", "a"], "whole numbers"),
    (["compare", "demo", "--over", "seed=1,2"], "with --seeds"),
    (["compare", "demo", "--over", "lr=0.1", "--over", "lr=0.2"], "--over lr is given twice"),
    (["compare", "demo", "--seed", "1", "--seeds", "2,3"], "--seed 1 beside --seeds 2,3"),
    (["compare", "demo", "--lr", "0.3", "--over", "lr=0.1,0.2"], "--lr 0.3 beside --over lr="),
    (["list", "schema"], "Did you mean 'schemes'"),
    (["report", "/nowhere"], "no summary.json in /nowhere;"),
    (["report"], "no summary.json in nothing given"),
]


@pytest.mark.parametrize(("words", "why"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(words, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert why in lines[0]


def test_a_report_has_each_run_once_and_none_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", *QUICK, "--out", "runs/one"]) == 0
    page = (tmp_path / "runs" / "one" / "report.html").read_bytes()
    assert main(["report", "runs", "runs/one/", str(tmp_path / "runs"), "--out", "page.html"]) == 0
    assert "configurations" not in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main(["report", "runs/one", "runs/two", "runs/three", "--out", "page.html"]) == 2
    assert "no summary.json in runs/two, runs/three;" in capsys.readouterr().err
    # and a comparison does not write over a run's page
    assert main(["compare", "demo", *QUICK, "--out", "runs/one"]) == 2
    assert "runs/one holds a run" in capsys.readouterr().err
    assert (tmp_path / "runs" / "one" / "report.html").read_bytes() == page
    # nor a run over a comparison's
    assert main(["report", "runs/one", "--out", "runs/report.html"]) == 0
    assert main(["run", "demo", *QUICK, "--out", "runs"]) == 2
    assert "runs holds a comparison's page" in capsys.readouterr().err


def test_none_is_a_name_where_it_is_one_and_nothing_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # does not hide the named recipe
    words = ["--reconstruction", "none", "--tail", "none", "--codec", "none", "--warmup-rounds", "0", "--rounds", "1"]
    assert main(["show", "demo", *words]) == 0
    shown = capsys.readouterr().out
    assert 'reconstruction = "none"' in shown
    assert "codec = {}" in shown
    assert "tail" not in shown
    assert main(["compare", "demo", *QUICK, "--over", "reconstruction=none,conv1x1", "--no-baselines", "--out", "c"]) == 0
    assert len(list(tmp_path.glob("c/*/summary.json"))) == 2
    assert main(["report", str(tmp_path)]) == 0


def test_a_recipe_file_that_is_none_is_bad_input(tmp_path, capsys):
    path = tmp_path / "broken.toml"
    path.write_text("lr = = 1")
    assert main(["run", str(path)]) == 2
    assert "broken.toml is no recipe file" in capsys.readouterr().err
    path.write_text('lr = "fast"')
    assert main(["run", str(path)]) == 2
    path.write_text("learning_rate = 1")
    assert main(["run", str(path)]) == 2
    assert "unknown recipe field 'learning_rate'" in capsys.readouterr().err


@pytest.mark.parametrize("codec", [{}, {"smashed": "float8"}])
def test_a_loss_that_is_nan_ends_the_run_with_1_and_finished_rounds_are_kept(codec, tmp_path, capsys):
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.iid(data.train, num_clients=1)
    with pytest.raises(RunFailed, match="lower lr"):
        cl.run(parts, clients, rounds=3, lr=1e30, batch_size=4, num_threads=1, codec=codec, out=tmp_path / "run")
    poisoned = data.train.dataset.tensors[0].clone()
    poisoned[0] = float("nan")
    bad = cl.data.from_datasets(TensorDataset(poisoned, data.train.labels), data.test.dataset, 4)
    with pytest.raises(RunFailed):
        cl.run(parts, cl.partition.iid(bad.train, num_clients=1), rounds=3, batch_size=4, num_threads=1, codec=codec)
    words = [
        "run",
        "demo",
        *QUICK,
        "--rounds",
        "4",
        "--lr",
        "1e18",
        "--lr-schedule",
        "constant",
        "--out",
        str(tmp_path / "cli"),
    ]
    assert main(words) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "lower lr" in error


WIDE = ["--auxiliary", "mlp", "--auxiliary-width", str(10**15)]


def test_too_little_memory_is_one_line_and_1(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", *QUICK, *WIDE]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("cutlayer: out of memory (")
    assert main(["compare", "demo", *QUICK, *WIDE, "--no-baselines"]) == 1
    assert "out of memory (" in " ".join(capsys.readouterr().out.split())
    # and where in the code that is, for who wants to know
    monkeypatch.setenv("CUTLAYER_DEBUG", "1")
    assert main(["run", "demo", *QUICK, *WIDE]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.strip().splitlines()[-1] == line


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch):
    def defect(*args, **kwargs):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr("cutlayer.compare.run_recipe", defect)
    with pytest.raises(RuntimeError, match="must match"):
        main(["run", "demo", *QUICK])


def test_a_full_disk_is_one_line_and_1(tmp_path):
    code = (
        "import resource; from cutlayer.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM));"
        f"raise SystemExit(main(['run', 'demo', *{QUICK!r}, '--out', 'ROOM']))"
    )
    for room in ("100", "50000"):  # too little for a file of text, and for weights
        command = [sys.executable, "-c", code.replace("ROOM", room)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        (line,) = done.stderr.strip().splitlines()
        assert done.returncode == 1
        assert line.startswith("cutlayer: a file cannot be written (")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("partition.json", '{"num_cl', "partition.json cannot be read"),
        ("summary.json", "", "summary.json cannot be read"),
        ("summary.json", "[]", "summary.json holds [] and no table"),
        ("weights/top.safetensors", "", "top.safetensors cannot be read"),
    ],
    ids=["cut off", "empty", "a list", "weights"],
)
def test_a_damaged_file_of_a_run_is_named(name, text, why, tmp_path, capsys):
    data, parts = small_data(), cl.cut(small_model(), "stem")
    clients = cl.partition.iid(data.train, num_clients=1)
    how = {"rounds": 1, "batch_size": 8, "num_threads": 1, "out": tmp_path}
    cl.run(parts, clients, **how)
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=re.escape(why) + ".*; delete .* run again"):
        cl.run(parts, clients, **how)
    if name == "summary.json":
        assert main(["report", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert why in line


def test_rounds_finished_before_a_failure_are_kept(tmp_path):
    from cutlayer.recipes.recipe import make
    from cutlayer.run import train
    from cutlayer.task import Task, cross_entropy

    calls = 0

    def breaks(output, y):
        nonlocal calls
        calls += torch.is_grad_enabled()  # not the trial before training
        return cross_entropy(output, y) * (float("nan") if calls > 6 else 1.0)

    data = small_data()
    recipe = make({"rounds": 5, "batch_size": 8, "num_threads": 1})
    parts, clients = cl.cut(small_model(), "stage1.block1"), cl.partition.iid(data.train, num_clients=1)
    with pytest.raises(RunFailed, match="in round 2"):
        train(recipe, parts, clients, Task(loss=breaks, num_classes=4), tmp_path)
    assert [json.loads(line)["round"] for line in (tmp_path / "records.jsonl").read_text().splitlines()] == [0, 1]


def test_what_python_gives_must_fit_together(tmp_path):
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.iid(data.train, num_clients=2)
    how = {"rounds": 2, "batch_size": 4, "num_threads": 1}
    for wrong in ((parts.top, clients, None), (parts, data, None), (parts, clients, "classification")):
        with pytest.raises(BadInput, match=r"was given where .* is wanted: cl\."):
            cl.run(*wrong[:2], task=wrong[2], **how)
    with pytest.raises(BadInput, match="num_clients = 5, and the partition has 2 clients"):
        cl.run(parts, clients, num_clients=5, **how)
    with pytest.raises(BadInput, match="these parts have none"):
        cl.run(parts, clients, tail="hidden", **how)
    with pytest.raises(BadInput, match="these clients have no data"):
        cl.run(parts, cl.partition.iid(data.train.labels, num_clients=2), **how)
    with pytest.raises(RunFailed, match="one sample reached BatchNorm; raise batch_size"):
        cl.run(parts, clients, scheme="dsl", **{**how, "batch_size": 1})
    by_column = cl.partition.by_column(data.train, torch.arange(len(data.train)) % 3)
    assert cl.run(parts, by_column, **how).summary["num_clients"] == 3
    # a tail that the parts have is known without being named again
    tailed = cl.run(cl.cut(small_model(), "stem", "hidden"), clients, codec={"features": "float8"}, **how)
    assert "labels" not in tailed.summary["bytes"]["up"]


def test_parts_that_do_not_compose_are_told_in_one_line():
    from torch import nn

    data = small_data()
    clients = cl.partition.iid(data.train, num_clients=1)
    good = cl.cut(small_model(), "pool")
    wide, few = nn.Linear(17, 4), nn.Linear(16, 2)
    flat = nn.Sequential(nn.Flatten(), nn.ReLU())
    for parts, why in (
        (cl.Parts(good.bottom, wide), r"the top cannot take the bottom's output of shape \(16,\)"),
        (cl.Parts(good.bottom, few), r"the loss cannot take outputs of shape \(2,\) for targets such as 3"),
        (cl.Parts(good.bottom, good.top, wide), r"the tail cannot take the top's output of shape \(4,\)"),
        (cl.Parts(flat, nn.Linear(36, 4)), "the bottom has no parameters to train; cut later"),
        (cl.Parts(good.bottom, nn.Sequential(nn.Identity())), "the top has no parameters to train; cut earlier"),
    ):
        with pytest.raises(BadInput, match=why) as error:
            cl.run(parts, clients, rounds=1, batch_size=4, num_threads=1)
        assert "\n" not in str(error.value)


def test_marks_of_other_parts_are_refused(tmp_path):
    from cutlayer.recipes.recipe import make
    from cutlayer.run import Paused, train
    from cutlayer.task import Task

    data = small_data()
    clients = cl.partition.iid(data.train, num_clients=1)
    recipe = make({"rounds": 3, "batch_size": 8, "num_threads": 1})
    with pytest.raises(Paused):
        train(recipe, cl.cut(small_model(), "stage1"), clients, Task(num_classes=4), tmp_path, deadline=0)
    with pytest.raises(BadInput, match="are of other parts than these"):
        train(recipe, cl.cut(small_model(), "stem"), clients, Task(num_classes=4), tmp_path)


def test_labels_out_of_range_and_strange_items_are_bad_input():
    x = torch.zeros(4, 1, 6, 6)
    with pytest.raises(BadInput, match="label 7 of sample 2 is out of range"):
        cl.data.from_datasets(TensorDataset(x, torch.tensor([0, 1, 7, 1])), TensorDataset(x, torch.zeros(4).long()), 4)
    with pytest.raises(BadInput, match=r"true or false, and classes have numbers; give y\.long\(\)"):
        cl.data.from_datasets(TensorDataset(x, torch.zeros(4).bool()), TensorDataset(x, torch.zeros(4).bool()), 2)


def test_interrupted_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("cutlayer.compare.run_recipe", interrupt)
    assert main(["run", "demo", *QUICK]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_processor_without_bfloat16_is_told_in_one_line(tmp_path):
    code = (
        "import torch; from cutlayer.cli import main; torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: False;"
        "main(['run', 'demo', '--rounds', '1', '--num-train', '32', '--num-test', '16', '--model', 'resnet8', '--precision', PRECISION])"
    )
    said = {}
    for precision in ("bfloat16", "float32"):
        command = [sys.executable, "-c", code.replace("PRECISION", repr(precision))]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said[precision] = [line for line in done.stderr.splitlines() if "precision" in line]
    assert said["float32"] == []
    assert len(said["bfloat16"]) == 1
    assert said["bfloat16"][0].startswith("cutlayer: precision = bfloat16: PyTorch has no fast")
