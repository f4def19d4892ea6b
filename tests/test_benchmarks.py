"""Every benchmark runs in its tiny profile, and shows there what it shows in full: the naive twin has the same weights."""

import importlib
import json
import runpy
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from cutlayer.recipes import load

FOLDER = ROOT / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("rows", "cells", "processes", "trials"))
TABLES = [name for name in NAMES if "def cells(" in (FOLDER / f"{name}.py").read_text()]


def every_cell(name):
    return [cell for cells in importlib.import_module("cells").of(name).values() for cell in cells]


def results():
    return {path: path.read_bytes() for path in (FOLDER / "results").glob("*")}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TABLES])
def test_tiny_profile(name, tmp_path):
    file = FOLDER / f"{name}.py"
    where = ["--out", str(tmp_path)] if 'add_argument("--out"' in file.read_text() else []
    before = results()
    command = [sys.executable, str(file), "--tiny", *where]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results() == before


@pytest.mark.parametrize("name", TABLES)
def test_tiny_profile_of_a_table(name, tmp_path, monkeypatch, capsys, no_figures):
    """In this process, because importing torch takes longer than the runs."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny", "--out", str(tmp_path)])
    before = results()
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert said.count("last five") >= 1
    assert "failed" not in said
    assert results() == before


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_of_a_table_is_a_recipe_of_its_own(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    cells = every_cell(name)
    assert len({str(cell) for cell in cells}) == len(cells)
    digests = [load(cell.base, **cell.fields).digest() for cell in cells]
    assert len(set(digests)) == len(digests)
    assert any(cell.tiny for cell in cells)


def test_rounds_to_a_target_and_to_the_plateau_are_those_of_the_mean_of_three(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    cells = importlib.import_module("cells")
    curve = [0.1, None, 0.7, 0.4, 0.6, 0.8, 0.9]
    assert [cells.reached(curve, level) for level in (0.1, 0.5, 0.7, 0.9)] == [4, 5, 7, None]  # three are there in round 4
    assert cells.means([None, 0.5, 0.7]) == [(3, pytest.approx(0.6))]
    assert cells.plateau(curve) == 7
    assert cells.plateau([0.5, 0.9, 0.7, 0.7, 0.698, 0.1]) == 4  # the mean of 0.9, 0.7 and 0.7 is the best


def test_a_row_is_found_by_its_labels_and_seed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    rows = importlib.import_module("rows")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    rows.write("x", {"what": "a", "seed": 1, "recipe": {"data_dir": "/secret", "rounds": 3, "speeds": [1.0], "device": "cpu"}})
    assert rows.written("x", {"rounds": 3, "speeds": (1.0,)}, what="a", seed=1)
    assert not rows.written("x", {"rounds": 4}, what="a", seed=1)
    assert rows.written("x", what="a", seed=1)
    assert not rows.written("x", what="a", seed=2)
    assert not rows.written("x", what="a", seed=1, more=3)
    assert rows.written("x", {"data_dir": None, "lr": 0.1}, what="a", seed=1)
    assert rows.written("x", {"device": "cpu"}, what="a", seed=1)
    assert not rows.written("x", {"device": "cuda"}, what="a", seed=1)
    assert "secret" not in (tmp_path / "x.jsonl").read_text()
    assert torch.__version__ in (tmp_path / "x.jsonl").read_text()
    rows.write("x", {"what": "a run that began earlier", "commit": "abc", "machine": {"processor": "then"}})
    assert rows.read("x")[-1]["commit"] == "abc"
    assert rows.read("x")[-1]["machine"] == {"processor": "then"}


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_command_of_every_row_can_be_typed(path):
    for line in path.read_text().splitlines():
        command = json.loads(line)["command"]
        words = shlex.split(command)
        assert shlex.join(words) == command
        assert words[:2] == ["python", f"benchmarks/{path.stem}.py"]


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_of_the_cells_as_they_are_now(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    rows = importlib.import_module("rows")
    cells = every_cell(name)
    for number, row in enumerate(rows.read(name), 1):
        cell = next((cell for cell in cells if rows.labelled(row, cell.labels)), None)
        assert cell, f"{name} L{number} is of no cell"
        assert rows.same(row["recipe"], load(cell.base, **cell.fields, seed=row["seed"]).flat()), f"{name} L{number}: {cell}"


@pytest.mark.parametrize(("flags", "said"), [(["--only", "nothing"], "matches no cell"), (["--seeds", "a"], "are no numbers")])
def test_what_no_table_can_run_is_one_line(flags, said, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["heads.py", "--tiny", "--out", str(tmp_path), *flags])
    with pytest.raises(SystemExit, match=said):
        runpy.run_path(str(FOLDER / "heads.py"), run_name="__main__")


def test_a_table_of_which_nothing_can_be_run_fails(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(
        sys,
        "argv",
        ["parity.py", "--data-dir", str(tmp_path / "none"), "--out", str(tmp_path), "--only", "42, all", "--seeds", "9"],
    )
    with pytest.raises(SystemExit, match="1 of 1 cells have no row"):
        runpy.run_path(str(FOLDER / "parity.py"), run_name="__main__")


def test_bytes_are_compared_at_one_cut(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    columns = importlib.import_module("columns")

    def run(cut, smashed, cut_grad):
        sent = {"up": {"smashed": {"payload": smashed}, "labels": {"payload": 8}}, "down": {"cut_grad": {"payload": cut_grad}}}
        return {"recipe": {"cut": cut, "precision": "bfloat16"}, "bytes": sent}

    base = run("shallow", 1000, 1000)
    assert columns.saved([(run("shallow", 500, 0), base)]) == "7.890"
    assert columns.saved([(run("deep", 500, 0), base)]) == ""


def test_a_row_in_other_arithmetic_is_its_cells_says_so_and_is_compared_within_it(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    forms, heads = importlib.import_module("result_forms"), importlib.import_module("heads")
    base, cell = heads.cells()[:2]
    recipe = json.loads(json.dumps(load(cell.base, **cell.fields).flat()))
    assert importlib.import_module("rows").same({**recipe, "precision": "float32"}, recipe)
    rows = [
        {**each.labels, "seed": 0, "recipe": {"precision": precision}}
        for each in (base, cell)
        for precision in ("float32", "bfloat16")
    ]
    assert [forms.conventional(row, cell, rows) for row in rows[2:]] == rows[:2]
    assert [forms.line(i, row, cell) for i, row in enumerate(rows[2:], 3)] == ["L3 in float32", "L4"]


def test_runs_on_a_gpu_are_lines_of_their_own_and_compared_with_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    forms, heads, columns = (importlib.import_module(name) for name in ("result_forms", "heads", "columns"))
    base, cell = heads.cells()[:2]
    found = [
        {**each.labels, "seed": 0, "accuracy_last5": accuracy, "recipe": {"precision": "bfloat16", "device": device}}
        for each, device, accuracy in ((base, "cpu", 0.5), (cell, "cpu", 0.6), (base, "cuda", 0.4), (cell, "cuda", 0.7))
    ]
    lines = forms.listed("heads", columns.DIFFERENCE, found).splitlines()
    mine = [line.split(" | ")[-2:] for line in lines if f"| {cell.labels['configuration']} |" in line]
    assert mine == [["+10.00 (one seed)", "L2 |"], ["+30.00 (one seed)", "L4 on a GPU |"]]
    _, _, told, _, _, _, both = forms.on_both("heads", columns.DIFFERENCE, found).splitlines()
    assert told.endswith("of a seed that ran on both the mean counts:")
    assert both.startswith(f"| {' | '.join(cell.labels.values())} | 1 | +20.00 (one seed)")
    assert not forms.on_both("heads", columns.DIFFERENCE, found[:3])


def test_a_profile_of_which_nothing_was_run_is_told(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    forms, authors = importlib.import_module("result_forms"), importlib.import_module("authors")
    page = forms.listed("authors", {}, [{**authors.cells()[0].labels, "seed": 0, "recipe": {"precision": "bfloat16"}}])
    assert f"Not run: {len(authors.cells()) - 1} of {len(authors.cells())} cells" in page
    assert f"Not run: all {len(authors.cells('full'))} cells of `--profile full`." in page


def test_one_process_holds_both_graphs_where_a_gradient_comes_back_and_else_the_larger(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    columns = importlib.import_module("columns")
    row = {
        "peak_memory_bytes": {"client": 40_000_000, "server": 60_000_000}, "parameters": {"bottom": 100_000, "top": 1_000_000},
        "bytes": {"down": {"cut_grad": {"payload": 1}}}, "num_clients": 1,
    }  # fmt: skip
    assert columns.in_one_process(row) == "100.0 MB"
    assert columns.in_one_process({**row, "bytes": {"down": {}}}) == "61.2 MB"
    assert (
        columns.in_one_process({**row, "bytes": {"down": {}}, "peak_memory_bytes": {"client": 60_000_000, "server": 1}})
        == "72.0 MB"
    )


def test_what_a_client_pays_is_all_that_it_holds_and_nothing_of_the_server(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    columns = importlib.import_module("columns")
    held = {"bottom": 4_000_000, "auxiliary": 2_000_000, "decoder": 1_000_000, "regressor": 500_000, "tail": 10_000}
    row = {"macs_per_sample": {**held, "top": 9**9}, "parameters": {**held, "top": 9**9}, "peak_memory_bytes": {"client": 2e6}}
    assert columns.holding(row) == "7.51 M / 7,510,000 / 2.0 MB"


def test_a_target_of_slperf_has_the_bytes_of_its_round_both_ways_and_not_of_the_whole_run(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    forms, slperf = importlib.import_module("result_forms"), importlib.import_module("slperf")
    cell = next(cell for cell in slperf.cells() if cell.labels["task"] == "cifar10")
    row = {
        **cell.labels, "curve": [0.1, 0.7, 0.7, 0.7, 0.8], "traffic": [n * 10**6 for n in (1, 2, 3, 4, 5)], "accuracy_final": 0.8,
        "accuracy_last5": 0.6, "client_drift": 0.25, "recipe": {},
    }  # fmt: skip
    assert forms._cell(cell, 7, row) == "80.00, 60.00 (4: 4.0 MB, 5, drift 0.250) L7"
    assert forms._cell(cell, 7, {**row, "curve": [0.1] * 5, "client_drift": None}) == "80.00, 60.00 (-, 3) L7"


def test_a_figure_leaves_out_what_has_no_place_and_one_that_is_not_drawn_is_removed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    figures, rows = importlib.import_module("results_figures"), importlib.import_module("rows")
    monkeypatch.setattr(figures, "FIGURES", tmp_path)
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "choices.svg").touch()
    monkeypatch.setattr(figures, "DRAWN", {"choices": figures.choices})
    row = {
        "what": "mlp",
        "cut": "deep",
        "accuracy_final": 0.5,
        "macs_per_sample": {"bottom": 100, "auxiliary": 10},
        "recipe": {},
    }
    for cut, there in (("deep", False), ("shallow", True)):
        with (tmp_path / "results" / "choices.jsonl").open("a") as file:
            file.write(json.dumps({**row, "cut": cut}) + "\n")
        figures.main()
        assert (tmp_path / "choices.svg").exists() == there
    (tmp_path / "results" / "choices.jsonl").unlink()
    figures.main()
    assert not (tmp_path / "choices.svg").exists()


def test_an_old_dirichlet_row_is_no_row_of_the_newer_partition_version(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    same = importlib.import_module("rows").same
    old = {"partition": "dirichlet", "alpha": 0.5}
    assert same(old, {**old, "partition_version": 1})
    assert not same(old, {**old, "partition_version": 2})
    assert same({"partition": "iid"}, {"partition": "iid", "partition_version": 2})


def test_results_name_the_partition_version_of_their_dirichlet_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    said = importlib.import_module("result_rows").partition_versions
    old, new = {"recipe": {"partition": "dirichlet"}}, {"recipe": {"partition": "dirichlet", "partition_version": 2}}
    iid = {"recipe": {"partition": "iid"}}
    assert said([old, old, iid, old, new]) == "Partition version of the Dirichlet rows: 1 in L1 to L2, L4; 2 in L5."
    assert said([iid, {}]) == ""
