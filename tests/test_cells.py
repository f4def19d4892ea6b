"""The engine of the tables: a finished run has one row, whose figures are the run's, and nothing is run or lost twice."""

import importlib
import json

import pytest
from conftest import ROOT
from filelock import FileLock

from cutlayer.compare import folder_of
from cutlayer.errors import BadInput
from cutlayer.recipes import load

FIELDS = {
    "data": "digits", "num_train": 64, "num_test": 32, "rounds": 3, "evaluate_every": 1, "warmup_rounds": 0, "batch_size": 16,
    "lr_schedule": "constant", "model": "resnet8", "precision": "float32", "num_threads": 1, "lr": 0.01,
}  # fmt: skip


@pytest.fixture
def table(monkeypatch, tmp_path, no_figures):
    """A function that runs cells by name in a folder, and the rows that it wrote there."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cells, rows = importlib.import_module("cells"), importlib.import_module("rows")
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["toy.py", "--only", "two words"])
    own = {
        "plain": {"scheme": "vanilla"},
        "averaged": {"scheme": "splitfed_v1", "num_clients": 2, "partition": "dirichlet"},
        "threshold": {"scheme": "async_loss", "threshold": 0.0, "lr": 0.02},
        "diverges": {"scheme": "vanilla", "lr": 1e30},
        "no such data": {"scheme": "vanilla", "data": "cifar10"},
    }

    def run(*names, more=lambda folder: {}, **arguments):
        args = cells.parser("toy", "").parse_args([f"--out={tmp_path / 'runs'}", *(f"--{k}={v}" for k, v in arguments.items())])
        chosen = [cells.Cell({"what": name}, "small-cifar10", {**FIELDS, **own[name]}) for name in names]
        cells.run("toy", chosen, args, "Toy", more=more)

    run.rows = lambda: rows.read("toy")
    run.folder = lambda name: folder_of(load("small-cifar10", **{**FIELDS, **own[name]}), tmp_path / "runs")
    return run


def records(table, name):
    return [json.loads(line) for line in (table.folder(name) / "records.jsonl").read_text().splitlines()]


def test_a_row_has_the_figures_of_its_run(table):
    table("plain", "averaged", "threshold", seeds="0,1,0")
    found = table.rows()
    assert [(row["what"], row["seed"]) for row in found] == [(w, s) for s in (0, 1) for w in ("plain", "averaged", "threshold")]
    for row in found[:3]:
        told = records(table, row["what"])
        assert row["curve"] == [record["accuracy"] for record in told]
        trained = sum(
            cell["payload"] for way in ("up", "down") for role, cell in row["bytes"][way].items() if role != "evaluation"
        )
        assert row["traffic"][-1] == trained > row["traffic"][0] > 0
        assert row["accuracy_final"] == row["curve"][-1]
        assert row["command"] == "python benchmarks/toy.py --only 'two words'"
    drifts = [record["client_drift"] for record in records(table, "averaged")]
    assert found[1]["client_drift"] == pytest.approx(sum(drifts) / 3)
    assert len({round(drift, 9) for drift in drifts}) == 3
    states = [record["state"] for record in records(table, "threshold")]
    assert found[2]["states"] == "".join("ABC"[int(state)] for state in states)
    assert found[2]["states"].startswith("AB")
    assert "states" not in found[0]


def test_a_row_says_what_its_table_finds_in_a_finished_run_and_without_that_there_is_none(table):
    def fails(folder):
        raise BadInput("nothing is found")

    with pytest.raises(SystemExit, match="nothing is found"):
        table("plain", more=fails)
    assert not table.rows()
    table("plain", "diverges", more=lambda folder: {"size": len(list(folder.glob("weights/*.safetensors")))})
    assert [row.get("size") for row in table.rows()] == [2, None]


def test_what_has_a_row_is_not_run_again_and_other_arithmetic_is(table, capsys, tmp_path):
    table("plain")
    before = (tmp_path / "results" / "toy.jsonl").read_bytes()
    table("plain")
    assert capsys.readouterr().out.count("done: seed 0, plain") == 1
    assert (tmp_path / "results" / "toy.jsonl").read_bytes() == before
    table("plain", precision="bfloat16")
    assert [row["recipe"]["precision"] for row in table.rows()] == ["float32", "bfloat16"]


def test_a_run_that_diverges_has_a_row_that_says_so(table):
    table("diverges", "plain")
    assert "failed" in table.rows()[0]
    assert table.rows()[1]["what"] == "plain"


def test_time_that_is_over_stops_at_a_mark_and_writes_no_row(table, capsys):
    table("plain", **{"max-minutes": 0})
    assert "stopped in plain; the same command goes on" in capsys.readouterr().out
    assert table.rows() == []


def test_a_cell_without_a_row_is_told_by_the_exit_and_the_others_are_run(table, capsys, monkeypatch):
    monkeypatch.delenv("CUTLAYER_DATA", raising=False)
    with pytest.raises(SystemExit, match="1 of 2 cells have no row; the same command tries them again"):
        table("no such data", "plain")
    assert "failed: seed 0, no such data:" in capsys.readouterr().out
    assert [row["what"] for row in table.rows()] == ["plain"]


def test_a_cell_of_another_process_is_left_to_it(table, capsys):
    folder = table.folder("plain")
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        table("plain", "averaged")
    assert "left to another process: seed 0, plain" in " ".join(capsys.readouterr().out.split())
    assert [row["what"] for row in table.rows()] == ["averaged"]


def test_the_page_shows_the_runs_of_other_calls_too(table, tmp_path):
    table("plain", "averaged", only="plain")
    table("plain", "averaged", only="averaged")
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "plain" in page
    assert "averaged" in page


@pytest.mark.parametrize("torn", [b'{"what": "pl', b'{"what": "plain"}\n{"wh', b"3", b'{"what": "plain"}\nnull'])
def test_a_torn_row_is_named_and_no_row_is_glued_to_it(table, tmp_path, torn):
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / "toy.jsonl"
    path.write_bytes(torn)
    lines = torn.count(b"\n") + 1
    with pytest.raises(SystemExit, match=f"toy.jsonl, line {lines} is no row .* delete it"):
        table("plain")
    importlib.import_module("rows").write("toy", {"what": "whole"})
    path.write_text("".join(line for number, line in enumerate(path.read_text().splitlines(True), 1) if number != lines))
    assert table.rows()[-1]["what"] == "whole"


def test_a_disk_that_is_full_leaves_no_part_of_a_row(table, tmp_path, monkeypatch):
    rows = importlib.import_module("rows")
    table("plain")
    before = (tmp_path / "results" / "toy.jsonl").read_bytes()
    monkeypatch.setattr(rows, "RESULTS", rows.Path("/dev/full"))
    with pytest.raises(rows.BadInput, match="cannot be written"):
        rows.write("toy", {"what": "lost"})
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    assert (tmp_path / "results" / "toy.jsonl").read_bytes() == before


def test_cells_are_chosen_by_their_words_or_else_by_an_expression(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cells = importlib.import_module("cells")
    found = [
        cells.Cell({"what": what}, "", {}) for what in ("lite + reconstruction", "mlp + reconstruction, deep", "mlp, deep end")
    ]

    def chosen(only):
        return [found.index(cell) for cell in cells.choose(found, only)]

    assert chosen("") == [0, 1, 2]
    assert chosen("+ reconstruction") == [0, 1]
    assert chosen("^(lite|mlp,)") == [0, 2]
    assert chosen("deep$") == [1]
    with pytest.raises(cells.BadInput, match="no regular expression"):
        chosen("[")
