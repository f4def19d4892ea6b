"""The command line: what it writes, and that bad input is one line and exit code 2, a failed run 1."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import equal, small_data, small_model
from torch.utils.data import TensorDataset

import cutlayer as cl
from cutlayer.cli import main
from cutlayer.compare import baselines
from cutlayer.errors import BadInput, RunFailed
from cutlayer.recipes import RECIPES, load
from cutlayer.recipes.schemes import BASELINES, SCHEMES
from cutlayer.recipes.toml import to_toml

QUICK = [
    "--num-train",
    "64",
    "--num-test",
    "32",
    "--rounds",
    "2",
    "--warmup-rounds",
    "0",
    "--model",
    "resnet8",
    "--batch-size",
    "16",
]


def test_run_writes_everything_it_promises(tmp_path, capsys):
    assert main(["run", "demo", *QUICK, "--tap", "true", "--out", str(tmp_path / "out")]) == 0
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {
        "recipe.toml",
        "partition.json",
        "records.jsonl",
        "summary.json",
        "report.html",
        "weights",
        "events",
        ".lock",
        "tap",
    }
    assert {path.name for path in (out / "weights").iterdir()} == {f"{n}.safetensors" for n in ("bottom", "top", "auxiliary")}
    summary = json.loads((out / "summary.json").read_text())
    promised = {
        "accuracy_final", "accuracy_last5", "accuracy_peak", "rounds", "bytes", "input_bytes", "seconds", "peak_memory_bytes",
        "held_byte_seconds", "macs_per_sample", "parameters", "num_clients", "seed", "recipe", "commit", "versions", "machine",
    }  # fmt: skip
    assert promised <= set(summary)
    assert set(summary["seconds"]) == {
        "client_forward",
        "client_backward",
        "server_forward",
        "server_backward",
        "codec",
        "wait",
    }
    assert set(summary["bytes"]["client"]) == {"client0", "client1"}
    assert summary["bytes"]["up"]["smashed"].keys() == {"payload", "wire"}
    assert summary["input_bytes"] == 64 * 8 * 8 * 4
    assert len((out / "records.jsonl").read_text().splitlines()) == 2
    assert any((out / "events").iterdir())
    assert "report.html" in capsys.readouterr().out
    # the recipe that was written is the run's own
    assert load(str(out / "recipe.toml")).digest() == summary["digest"]


def test_compare_runs_the_product_once_and_goes_on(tmp_path, capsys):
    words = [
        "compare",
        "--no-baselines",
        "demo",
        *QUICK,
        "--over",
        "method=backprop,auxiliary_loss",
        "--over",
        "num_clients=1,2",
        "--seeds",
        "0,1",
    ]
    words += ["--diagnose-every", "0", "--out", str(tmp_path)]
    assert main([*words, "--max-minutes", "0"]) == 0
    assert not list(tmp_path.glob("*/summary.json"))  # nothing is finished in no time
    assert main(words) == 0
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    assert len(done) == 8
    assert all(len(path.parent.name) == 12 for path in done)
    capsys.readouterr()
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")} == done
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_compare_takes_the_seed_of_its_recipe_where_none_is_given(tmp_path):
    assert main(["compare", "demo", *QUICK, "--no-baselines", "--seed", "3", "--out", str(tmp_path)]) == 0
    assert [json.loads(path.read_text())["seed"] for path in tmp_path.glob("*/summary.json")] == [3]


def test_names_and_paths_are_shown_as_they_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[x].toml").write_text(to_toml({"name": "n[/y]:cat:", "num_threads": 1}))
    few = [*QUICK, "--rounds", "1", "--diagnose-every", "0"]
    assert main(["run", "a[x].toml", *few, "--out", "out[/x]"]) == 0
    said = capsys.readouterr().out
    assert "n[/y]:cat:" in said
    assert "report: out[/x]/report.html" in said
    assert main(["compare", "a[x].toml", *few, "--no-baselines", "--out", "runs[a]", "--over", "lr=0.1,1e18"]) == 1
    assert "runs: runs[a]\n" in capsys.readouterr().out
    assert main(["run", "a[x].toml", *few, "--dry-run"]) == 0
    assert "n[/y]:cat:" in capsys.readouterr().out


def test_compare_pauses_inside_a_run_and_the_weights_are_the_same(tmp_path):
    words = ["compare", "demo", *QUICK, "--no-baselines", "--checkpoint-every", "1"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    stops = 0
    while not list((tmp_path / "parts").glob("*/summary.json")):
        assert main([*words, "--out", str(tmp_path / "parts"), "--max-minutes", "0.0001"]) == 0
        stops += 1
        assert stops < 50
    assert stops > 1
    for path in (tmp_path / "whole").glob("*/weights/*"):
        assert path.read_bytes() == (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.parametrize("more", [[], ["--max-minutes", "9"]], ids=["to the end", "in time"])
def test_compare_with_a_failed_run_ends_with_1_and_the_others_are_done(more, tmp_path, capsys):
    words = ["compare", "demo", *QUICK, "--no-baselines", "--lr-schedule", "constant", "--out", str(tmp_path), *more]
    assert main([*words, "--over", "lr=0.1,1e18"]) == 1
    assert "lower lr" in " ".join(capsys.readouterr().out.split())
    assert len(list(tmp_path.glob("*/summary.json"))) == 1
    assert main([*words, "--over", "lr=1e18"]) == 1
    assert "no run was finished" in capsys.readouterr().err


def test_compare_sets_the_uncut_network_beside_its_cells(tmp_path, capsys):
    words = [
        "compare",
        "demo",
        *QUICK,
        "--over",
        "method=backprop,auxiliary_loss",
        "--over",
        "num_clients=1,2",
        "--out",
        str(tmp_path),
    ]
    assert main(words) == 0
    shown = [json.loads(path.read_text())["recipe"] for path in tmp_path.glob("*/summary.json")]
    counted = sorted((recipe["scheme"], recipe["num_clients"]) for recipe in shown)
    assert counted == [
        ("centralised", 1), ("dsl_seq", 1), ("dsl_seq", 2), ("fedavg", 2), ("local_only", 2), ("vanilla", 1), ("vanilla", 2),
    ]  # fmt: skip
    assert all(recipe["cut"] == "none" for recipe in shown if recipe["method"] == "uncut")


@pytest.mark.parametrize(
    "fields",
    [
        {"scheme": "dsl", "overlap": 2, "diagnose_every": 0},
        {"codec": "smashed=float8", "compress_eval": "true"},
        {"speeds": "1e9,2e9", "uplink": 10},
        {"scheme": "splitfed_v1", "fedprox": 0.1},
        *({"scheme": name} for name in SCHEMES),
    ],
    ids=str,
)
def test_what_is_legal_with_a_cut_has_its_baselines(fields):
    recipe = load("demo", **fields)
    found = {made.scheme: made for made in baselines([recipe])}
    assert {*found, recipe.scheme} >= (set(BASELINES) if recipe.num_clients > 1 else {"centralised"})
    # who is alone has the speed of none of several clients, so it has no clock
    assert [bool(made.simulated()) for made in found.values()] == [
        bool(recipe.simulated()) and made.num_clients > 1 for made in found.values()
    ]
    one = load("demo", speeds="1e9", uplink=10)
    assert all(made.simulated() == one.simulated() for made in baselines([one]))


@pytest.mark.parametrize("name", RECIPES)
def test_show_prints_a_recipe_that_reads_back(name, capsys, tmp_path):
    assert main(["show", name]) == 0
    path = tmp_path / f"{name}.toml"
    path.write_text(capsys.readouterr().out)
    assert load(str(path)).flat() == load(name).flat()


def test_a_recipe_is_given_a_name_of_the_readers_own(capsys):
    assert main(["show", "demo", "--name", "mine"]) == 0
    assert 'name = "mine"' in capsys.readouterr().out


PRICED = [
    {"method": "backprop"},
    {"method": "backprop", "hand_over": "carry", "codec": {"weights": "float16", "smashed": "float8"}},
    {"method": "backprop", "hand_over": "carry", "num_clients": 1, "evaluate_every": 3, "rounds": 7},
    {"method": "backprop", "cut": "block1", "tail": "pool"},
    {"method": "auxiliary_loss", "lambda_weight": 0.5, "lambda_every": 2, "send_every": 3},
    {"method": "auxiliary_loss", "hand_over": "shared", "send_every": 4, "local_epochs": 2},
    {"scheme": "splitfed_v1", "sync_every": "2 batches"},
    {"scheme": "splitfed_v2", "batch_norm": "local", "participation": 0.5, "num_clients": 3},
    {"scheme": "fedavg", "codec": {"weights": "float16"}},
    {"scheme": "fsl_sage", "send_every": 3, "align_rounds": 2, "align_epochs": 1, "rounds": 3},
    {"scheme": "dni", "true_every": 3, "delay": 2},
    {"scheme": "hosl", "queries": 2, "center": True, "lr": 1e-3},
    {"scheme": "hosl", "num_clients": 1, "evaluate_every": 8, "rounds": 8, "lr": 1e-3},
    {"scheme": "heron_sfl", "send_every": 2, "lr": 1e-3},
    {"scheme": "vanilla", "codec": {"smashed": "top_k@0.2+uniform4", "cut_grad": "top_k@0.2+uniform8"}},
    {"scheme": "dsl", "codec": {"smashed": "batch_merge@0.25+low_rank@2"}},
    {"scheme": "async_splitfed", "merge": "fedbuff", "buffer_size": 2},
]


@pytest.mark.parametrize("more", PRICED, ids=str)
def test_dry_run_says_what_the_run_then_counts(more, tmp_path):
    from cutlayer.estimate import estimate

    recipe = load("demo", **{"num_train": 100, "num_test": 32, "rounds": 2, "batch_size": 16, "model": "resnet8", **more})
    cost = estimate(recipe)
    counted = cl.run_recipe(recipe, tmp_path / "run").summary
    for direction in ("up", "down"):
        table = counted["bytes"][direction].items()
        assert {role: cell["payload"] for role, cell in table if cell["payload"]} == cost.payload[direction]
    assert cost.parameters == counted["parameters"]
    assert cost.macs_per_sample == counted["macs_per_sample"]
    for side, peak in cost.peak_memory_bytes.items():
        # what these keep from step to step is not in an estimate of a few steps
        keeps = (recipe.method, side) in {("fsl_sage", "server"), ("synthetic_gradient", "client")}
        assert peak < counted["peak_memory_bytes"][side] if keeps else peak == counted["peak_memory_bytes"][side]


@pytest.mark.parametrize(
    ("more", "why"),
    [({}, ""), ({"partition": "dirichlet"}, "takes more turns"), ({"speeds": "1e6", "server_speed": 1e6}, "takes more turns")],
)
def test_dry_run_says_where_bytes_are_an_estimate(more, why):
    from cutlayer.estimate import estimate

    small = {"num_train": 100, "num_test": 32, "rounds": 2, "batch_size": 16, "model": "resnet8", "num_clients": 2}
    assert why in estimate(load("demo", scheme="async_splitfed", **small, **more)).inexact
    assert not estimate(load("demo", scheme="async_splitfed", **small)).inexact


def test_dry_run_prints_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", *QUICK, "--dry-run"]) == 0
    assert "bytes up, smashed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


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
        calls += 1
        return cross_entropy(output, y) * (float("nan") if calls > 7 else 1.0)

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


def test_a_finished_run_is_returned_and_not_done_again(tmp_path):
    data, parts = small_data(), cl.cut(small_model(), "stage1.block1")
    clients = cl.partition.iid(data.train, num_clients=2)
    how = {"rounds": 2, "batch_size": 4, "num_threads": 1, "out": tmp_path}
    first = cl.run(parts, clients, **how)
    again = cl.run(parts, clients, **how)
    assert again.summary == json.loads(json.dumps(first.summary))
    assert again.records == json.loads(json.dumps(first.records))
    assert all(equal(first.modules[name], again.modules[name]) for name in first.modules)
    for other in (
        lambda: cl.run(cl.cut(small_model(), "stem"), clients, **how),
        lambda: cl.run(parts, cl.partition.iid(data.train, num_clients=2, seed=1), **how),
        lambda: cl.run(parts, clients, task=cl.Task(lambda output, y: output.sum()), **how),
    ):
        with pytest.raises(BadInput, match="holds another recipe"):
            other()
    assert json.loads((tmp_path / "summary.json").read_text()) == again.summary


def test_the_peak_of_a_metric_that_should_be_low_is_its_lowest():
    data, parts = small_data(), cl.cut(small_model(), "stem")
    clients = cl.partition.iid(data.train, num_clients=1)
    task = cl.Task(metrics={"error": lambda output, y: float((output.argmax(1) != y).double().mean())}, higher_is_better=False)
    result = cl.run(parts, clients, task=task, rounds=4, batch_size=4, num_threads=1)
    assert result.summary["accuracy_peak"] == min(record["error"] for record in result.records)


def test_the_figures_of_a_run_are_of_its_last_evaluation_its_last_five_and_its_best():
    scores = [0.9, 0.2, 0.7, 0.8, 0.2, 0.2, 0.6]
    given = iter(scores)
    clients = cl.partition.iid(small_data().train, num_clients=1)
    task = cl.Task(metrics={"score": lambda output, y: next(given)})
    result = cl.run(cl.cut(small_model(), "stem"), clients, task=task, rounds=7, batch_size=12, num_threads=1)
    assert [record["score"] for record in result.records] == scores
    figures = [result.summary[f"accuracy_{when}"] for when in ("final", "last5", "peak")]
    assert figures == pytest.approx([0.6, 0.5, 0.9])  # 0.7 + 0.8 + 0.2 + 0.2 + 0.6 = 2.5


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
