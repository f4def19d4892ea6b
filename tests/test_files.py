"""Files of a run: a flipped byte is found before it is used, nothing that was recorded is lost, and others can read none of it."""

import json
import os
import re
import warnings

import pytest
import torch
from conftest import QUICK, small_data, small_model

import cutlayer as cl
from cutlayer import checkpoint
from cutlayer.certs import demo
from cutlayer.cli import main
from cutlayer.errors import Advice, BadInput
from cutlayer.recipes.recipe import make
from cutlayer.run import Paused, train
from cutlayer.task import Task
from cutlayer.transports.grpc_common import Tls

pytestmark = pytest.mark.usefixtures("no_figures")

TREE = {
    "parties": {
        "clients": [{"client": torch.arange(4.0)}, {"client": torch.arange(5.0)}],
        "server": {"top": torch.ones(3)},
        "codecs": [torch.zeros(2)],
    },
    "outputs": {"records": "[]", "elapsed": 0.5},
}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def test_a_mark_is_an_index_with_one_file_for_each_party(tmp_path):
    checkpoint.save(tmp_path, "1", TREE)
    names = {"client0.safetensors", "client1.safetensors", "server.safetensors", "tensors.safetensors", "tree.json"}
    assert {path.name for path in (tmp_path / "1").iterdir()} == {*names, "index.json"}
    assert json.loads((tmp_path / "1" / "index.json").read_text())["sha256"].keys() == names
    back = checkpoint.load(tmp_path / "1")
    assert torch.equal(back["parties"]["clients"][1]["client"], torch.arange(5.0))
    # a party that did not change has the same file, so that a later mark may link it
    checkpoint.save(tmp_path, "2", {**TREE, "outputs": {"records": "[1]", "elapsed": 1.0}})
    one, two = (json.loads((tmp_path / name / "index.json").read_text())["sha256"] for name in "12")
    assert {name for name in names if one[name] != two[name]} == {"tree.json"}


@pytest.mark.parametrize(
    "file", ["client0.safetensors", "server.safetensors", "tensors.safetensors", "tree.json", "index.json"]
)
def test_one_flipped_byte_of_a_mark_is_found_and_never_used(file, tmp_path):
    for at in (-2, 3, 40):
        checkpoint.save(tmp_path, "1", TREE)
        flip(tmp_path / "1" / file, at)
        with pytest.raises(BadInput, match=r"the mark .*1 cannot be read .*; delete it, and the one before it is used"):
            checkpoint.load(tmp_path / "1")
    (tmp_path / "1" / file).unlink()
    with pytest.raises(BadInput, match="cannot be read"):
        checkpoint.load(tmp_path / "1")


def test_a_mark_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "1").mkdir()
    save_file({"0": torch.ones(2)}, tmp_path / "1" / "tensors.safetensors")
    (tmp_path / "1" / "tree.json").write_text('{"tensor": "0"}')
    with pytest.raises(BadInput, match=r"it has no index\.json: it is not whole, or an earlier version wrote it"):
        checkpoint.load(tmp_path / "1")


def test_a_run_does_not_go_on_from_a_damaged_mark(tmp_path):
    clients, parts = cl.partition.iid(small_data().train, num_clients=1), cl.cut(small_model(), "stem")
    recipe = make({"rounds": 3, "batch_size": 8, "num_threads": 1})
    with pytest.raises(Paused):
        train(recipe, parts, clients, Task(num_classes=4), tmp_path, deadline=0)
    newest = checkpoint.marks(tmp_path / "marks")[-1]
    flip(newest / "server.safetensors", -1)
    with pytest.raises(BadInput, match=rf"the mark {newest} cannot be read \(its file server\.safetensors is damaged"):
        train(recipe, parts, clients, Task(num_classes=4), tmp_path)


def test_records_without_a_mark_are_kept_beside_and_said(tmp_path):
    clients, parts = cl.partition.iid(small_data().train, num_clients=1), cl.cut(small_model(), "stem")
    how = {"rounds": 1, "batch_size": 8, "num_threads": 1, "out": tmp_path}
    with warnings.catch_warnings():
        warnings.simplefilter("error", Advice)
        cl.run(parts, clients, **how)
    for n in (1, 2):
        (tmp_path / "summary.json").unlink()
        (tmp_path / "records.jsonl").write_text(f'{{"round": {n}}}\n')
        with pytest.warns(Advice, match=rf"the records are kept in records\.jsonl\.{n}"):
            cl.run(parts, clients, **how)
        assert (tmp_path / f"records.jsonl.{n}").read_text() == f'{{"round": {n}}}\n'
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the command line, under a umask that hides nothing."""
    out = tmp_path_factory.mktemp("finished") / "runs" / "one"
    before = os.umask(0)
    try:
        assert main(["run", "demo", *QUICK, "--rounds", "1", "--diagnose-every", "0", "--tap", "true", "--out", str(out)]) == 0
    finally:
        os.umask(before)
    return out


def test_others_can_read_nothing_of_a_run_whatever_the_umask_is(finished):
    assert finished.stat().st_mode & 0o777 == 0o700
    for path in finished.rglob("*"):
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700, path
        elif path.name != "report.html" and path.parent.name != "events":
            assert path.stat().st_mode & 0o777 == 0o600, path


def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    checkpoint.save(tmp_path, "1", TREE)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o700


def test_damaged_weights_of_a_finished_run_are_named_and_not_used(finished, tmp_path, capsys):
    path = finished / "weights" / "bottom.safetensors"
    flip(path, -1)
    again = ["run", "demo", *QUICK, "--rounds", "1", "--diagnose-every", "0", "--tap", "true", "--out", str(finished)]
    predict = ["predict", "demo", *QUICK, "--weights", str(path.parent), "--local", "--out", str(tmp_path / "answers.csv")]
    try:
        for words in (again, predict, ["audit", str(finished)]):
            assert main(words) == 2
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert re.search(
                r"bottom\.safetensors cannot be read \(it is damaged: its SHA-256 is not that of index\.json\); delete ", line
            )
        with pytest.warns(Advice, match=r"bottom\.safetensors cannot be read .*; the report shows its figures all the same"):
            assert main(["report", str(finished), "--out", str(tmp_path / "page.html")]) == 0
    finally:
        flip(path, -1)
    assert main(again) == 0


def test_a_key_that_others_can_read_is_refused_as_ssh_does(tmp_path):
    demo(tmp_path / "certs", ["alice"])
    assert (tmp_path / "certs").stat().st_mode & 0o777 == 0o700
    tls = Tls(*(tmp_path / "certs" / name for name in ("ca.pem", "alice.pem", "alice.key")))
    tls.read()
    tls.key.chmod(0o640)
    with pytest.raises(BadInput, match=r"can be read by others \(mode 640\); chmod 600 "):
        tls.read()


def test_a_finished_run_without_its_weights_is_one_line(tmp_path, capsys):
    words = ["run", "demo", *QUICK, "--rounds", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    weights = tmp_path / "out" / "weights"
    (weights / "index.json").unlink()
    (weights / "top.safetensors").write_bytes(b"x")
    assert main(words) == 2
    assert "top.safetensors cannot be read" in capsys.readouterr().err
    for path in weights.iterdir():
        path.unlink()
    assert main(words) == 2
    assert "holds no trained weights; delete" in capsys.readouterr().err


def test_what_has_no_number_for_a_name_is_no_mark(tmp_path):
    checkpoint.save(tmp_path, "00000001", TREE)
    (tmp_path / "backup").mkdir()
    assert [path.name for path in checkpoint.marks(tmp_path)] == ["00000001"]
