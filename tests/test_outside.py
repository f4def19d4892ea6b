"""A package that cutlayer knows nothing of brings its model, data, loss and method, by name, without an edit here."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The environment of a process in which the outside package is installed."""
    target = tmp_path_factory.mktemp("site")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        target,
    ]
    subprocess.run([*install, ROOT / "tests" / "outside"], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def cutlayer(env, *words):
    command = [sys.executable, "-m", "cutlayer.cli", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


OURS = [
    "--data",
    "rings",
    "--model",
    "outside:parts",
    "--task",
    "outside:task",
    "--num-clients",
    "2",
    "--num-threads",
    "1",
]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("damped", ["--over", "damping=0.5,1.0"]),
        ("outside:Damped", []),
        ("auxiliary_loss", ["--over", "auxiliary=linear,block"]),
    ],
)
def test_everything_of_the_users_own_runs_like_what_is_built_in(outside, tmp_path, method, options):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'method = "{method}"\nrounds = 8\nbatch_size = 8\nlr = 0.1\n')
    done = cutlayer(outside, "compare", recipe, "--no-baselines", *OURS, *options, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/summary.json")]
    assert len(summaries) == (2 if options else 1)
    for summary in summaries:
        assert summary["accuracy_final"] > 0.7
        assert summary["release"] == "own"
        assert ("cut_grad" in summary["bytes"]["down"]) == (method != "auxiliary_loss")
    if method == "damped" and options:
        assert len({summary["recipe"]["damping"] for summary in summaries}) == 2
        assert len({summary["digest"] for summary in summaries}) == 2


def test_a_codec_of_the_users_own_is_measured_like_any_other(outside, tmp_path):
    words = ["--rounds", "4", "--batch-size", "8", "--codec", "smashed=outside:rounded", "--out", tmp_path / "out"]
    done = cutlayer(outside, "run", "demo", *OURS, "--warmup-rounds", "0", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["bytes"]["up"]["smashed"]["payload"] == 4 * 96 * 16


def test_rows_from_outside_are_listed(outside):
    for kind, name, value in (("methods", "damped", "outside:Damped"), ("data", "rings", "outside:rings")):
        listed = cutlayer(outside, "list", kind)
        assert name in listed.stdout
        assert value in listed.stdout


def test_what_cannot_be_imported_is_one_line(outside, tmp_path):
    done = cutlayer(outside, "run", "demo", "--data", "outside:circles", "--out", tmp_path)
    assert done.returncode == 2
    assert "'outside:circles' cannot be imported" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
