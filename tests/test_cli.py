"""The command line: what it writes, and that bad input is one line and exit code 2, a failed run 1."""

import json

import pytest
from conftest import QUICK, equal, small_data, small_model

import cutlayer as cl
from cutlayer.cli import main
from cutlayer.compare import baselines
from cutlayer.errors import BadInput
from cutlayer.recipes import RECIPES, load
from cutlayer.recipes.schemes import BASELINES, SCHEMES
from cutlayer.recipes.toml import to_toml


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
        "data.json",
        "weights",
        "events",
        ".lock",
        "tap",
    }
    weights = {f"{n}.safetensors" for n in ("bottom", "top", "auxiliary")}
    assert {path.name for path in (out / "weights").iterdir()} == {*weights, "index.json"}
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
    # without its summary it is run again, and has one curve
    (out / "summary.json").unlink()
    assert main(["run", "demo", *QUICK, "--tap", "true", "--out", str(out)]) == 0
    assert len(list((out / "events").iterdir())) == 1


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


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--method", "backprop", "--over", "scheme=dsl,splitfed_v2"], [("backprop", "relay"), ("backprop", "parallel")]),
        (["--scheme", "vanilla", "--over", "lr=0.1,0.2"], [("backprop", "relay")] * 2),  # demo is another scheme
        (["--over", "scheme=vanilla,dsl", "--lambda-weight", "0.5"], [("backprop", None), ("auxiliary_loss", 0.5)]),
    ],
    ids=["method", "scheme", "option"],
)
def test_a_flag_wins_in_every_cell_over_what_the_scheme_decides(words, wanted, tmp_path, monkeypatch):
    (tmp_path / "whole.toml").write_text(to_toml(load("demo").flat()))
    made = []
    monkeypatch.setattr("cutlayer.compare.compare", lambda recipes, *_, **__: (made.extend(recipes) or [], True))
    assert main(["compare", str(tmp_path / "whole.toml"), "--no-baselines", "--out", str(tmp_path / "out"), *words]) == 0
    second = "lambda_weight" if "--lambda-weight" in words else "schedule"
    assert [(recipe.flat()["method"], recipe.flat().get(second)) for recipe in made] == wanted


def test_an_option_flag_of_no_cell_is_refused(tmp_path, capsys):
    words = ["compare", "demo", "--out", str(tmp_path), "--threshold", "0.7"]
    assert main(words) == 2
    assert "threshold is an option of method loss_threshold" in capsys.readouterr().err
    assert main([*words, "--over", "method=backprop,auxiliary_loss"]) == 2
    assert "threshold is an option of method loss_threshold" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["name=a,b", "device=cpu,cuda", "transport=inprocess,grpc", "data_dir=a,b"])
def test_what_is_no_part_of_a_recipe_is_not_swept(field, tmp_path, capsys):
    assert main(["compare", "demo", "--out", str(tmp_path), "--over", field]) == 2
    assert "is not part of a recipe, so all cells would be one; compare in two folders" in capsys.readouterr().err


@pytest.mark.parametrize("over", ["codec=smashed=float8;", "lr=0.1,,0.2", "codec=;smashed=float8"])
def test_an_empty_value_is_not_swept(over, tmp_path, capsys):
    assert main(["compare", "demo", "--out", str(tmp_path), "--over", over]) == 2
    assert "has an empty value" in capsys.readouterr().err


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
    {"scheme": "splitfed_v2", "num_clients": 3, "server_order": "concatenated"},
    {"scheme": "dni", "num_clients": 2, "hand_over": "carry", "optimizer": "adam", "delay": 3, "true_every": 2},
    {"method": "auxiliary_loss", "auxiliary": "linear", "send_every": 3, "cut": "block1", "tail": "pool"},
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
    [
        ({}, ""),
        ({"codec": "weights=minifloat@4:3"}, "no sign bit where nothing is negative"),
        ({"partition": "dirichlet"}, "takes more turns"),
        ({"speeds": "1e6", "server_speed": 1e6}, "takes more turns"),
    ],
)
def test_dry_run_says_where_bytes_are_an_estimate(more, why):
    from cutlayer.estimate import estimate

    small = {"num_train": 100, "num_test": 32, "rounds": 2, "batch_size": 16, "model": "resnet8", "num_clients": 2}
    assert why in estimate(load("demo", scheme="async_splitfed", **small, **more)).inexact
    assert not estimate(load("demo", scheme="async_splitfed", **small)).inexact


def test_dry_run_says_that_a_batch_is_too_small(capsys):
    assert main(["run", "demo", *QUICK, "--batch-size", "1", "--auxiliary", "mlp", "--dry-run"]) == 1
    assert "a batch of one sample reached BatchNorm; raise batch_size" in capsys.readouterr().err


def test_dry_run_prints_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", *QUICK, "--dry-run"]) == 0
    assert "bytes up, smashed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


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
