"""Input that nobody should give is one line and exit code 2, never a traceback; Ctrl-C is one line from the first import on."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import QUICK, ROOT

from cutlayer.cli import main
from cutlayer.errors import BadInput
from cutlayer.recipes import load
from cutlayer.report import read, write
from cutlayer.signals import terminable
from cutlayer.transports.grpc_common import check_party_name

FILES = {
    "empty": (b"", "it has no field"),
    "only a comment": (b"# nothing\n", "it has no field"),
    "nested": (b"a = " + b"[" * 100_000, "nested too deeply"),
    "binary": (bytes(range(256)), "is no recipe file"),
    "a null in a path": (b'data = "cifar10"\ndata_dir = "a\\u0000b"', "a path has no null character"),
    "wrong types": (b"lr = [[1]]\n", "lr = [[1]]"),
    "a table for a number": (b"rounds = {a = 1}\n", "rounds = "),
}


@pytest.mark.parametrize(("data", "why"), FILES.values(), ids=FILES)
def test_a_recipe_file_that_is_none_is_one_line(data, why, tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_bytes(data)
    assert main(["run", str(path), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert why in line


def test_a_recipe_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'\xef\xbb\xbfscheme = "vanilla"\n')
    assert load(str(path)).scheme == "vanilla"


WORDS = [
    (["run", "demo", "--num-threads", "99999999999"], "num_threads = '99999999999'"),
    (["run", "demo", "--batch-size", str(10**21)], "batch_size = "),
    (["run", "demo", "--local-epochs", str(10**21)], "local_epochs = "),
    (["run", "demo", "--lr", "1e308"], "lr = '1e308'"),
    (["run", "demo", "--name", "a\udcff"], r"name = 'a\udcff': this is no UTF-8 text"),
    (["run", "a\nb"], r"unknown recipe 'a\nb'"),
    (["run", "demo", "--out", ""], "--out is empty"),
    (["run", "demo", "--out="], "--out is empty"),
    (["report", "a\nb\x1b[2J"], r"no summary.json in a\nb\x1b[2J"),
    (["compare", "demo", "--over", "lr=\udcff"], r"lr = '\udcff'"),
    (["compare", "demo", "--seeds", "9" * 5000], "--seeds"),
    (["compare", "demo", "--max-minutes", "nan"], "--max-minutes nan"),
    (["join", "demo", "--server", "127.0.0.1:1", "--as", "../../x", "--insecure"], "--as '../../x'"),
    (["join", "demo", "--server", "127.0.0.1:1", "--as", "", "--insecure"], "--as ''"),
    (["serve", "demo", "--diagnose-every", "0", "--clients", "a\nb,c", "--insecure"], r"--clients 'a\nb'"),
]


@pytest.mark.parametrize(("words", "why"), WORDS, ids=[ascii(words)[:60] for words, _ in WORDS])
def test_words_that_nobody_should_give_are_one_line(words, why, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert why in line
    assert "\x1b" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", ".", "", "a\n", "a/b", "a\\b", 'a"b', "x" * 65, "a ", "\u202ea", "-".join("ab") + "\0"])
def test_a_clients_name_is_no_path_and_no_escape(name):
    with pytest.raises(BadInput, match="a client's name has"):
        check_party_name("--as", name)
    for fine in ("alice", "Klinik Süd", "a.b_c-1@x.org", "x" * 64):
        check_party_name("--as", fine)


RECORDS = [
    "5",
    '{"round": 0, "accuracy": "x"}',
    "[]",
    "{}",
    '{"round": "x"}',
    '{"round": 0, "bytes": 5}',
    '{"round": 0, "bytes": {"up": 5}}',
    '{"round": 0, "seconds": []}',
]


@pytest.mark.parametrize("line", RECORDS)
def test_a_damaged_record_is_one_line(line, tmp_path):
    (tmp_path / "records.jsonl").write_text(f"{line}\n" + '{"round": 1, "accuracy": 0.5}\n')
    with pytest.raises(BadInput, match="holds no run that can be read"):
        read(tmp_path)


SUMMARIES = [
    {"bytes": 5}, {"bytes": {"up": 5}}, {"recipe": 5}, {"accuracy_final": "x"}, {"peak_memory_bytes": 7}, {"macs_per_sample": []},
    {"seconds": 5}, {"simulated": 5}, {"seed": "x"}, {"metric": {}}, {"parameters": 5}, {"class_counts": 5},
    {"class_counts": [[10**30]]}, {"bytes_left_after_step": {"client": [1]}}, {"bytes": {"down": {"weights": {}}}},
]  # fmt: skip


@pytest.mark.parametrize("damage", SUMMARIES, ids=str)
def test_a_damaged_summary_is_one_line(damage, tmp_path):
    (tmp_path / "records.jsonl").write_text('{"round": 0, "accuracy": 0.5}\n')
    whole = {"metric": "accuracy", "accuracy_final": 0.5, "recipe": {"scheme": "vanilla"}}
    (tmp_path / "summary.json").write_text(json.dumps(whole | damage))
    with pytest.raises(BadInput, match=r"summary\.json is damaged \("):
        write([read(tmp_path)], tmp_path / "page.html")


def start(code, cwd):
    """Run Python with the package's root on its path, and return its end."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )


def test_ctrl_c_during_imports_is_one_line_and_130(tmp_path):
    done = start(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from cutlayer_start import main\n"
        "sys.exit(main())",
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (130, "cutlayer: interrupted\n")


def test_a_deleted_working_folder_is_one_line(tmp_path):
    done = start(
        "import os, sys; os.mkdir('x'); os.chdir('x'); os.rmdir('../x'); from cutlayer_start import main; sys.exit(main())",
        tmp_path,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "the current folder does not exist any more" in line


def test_sigterm_stops_a_run_as_ctrl_c_does_with_143(monkeypatch, capsys):
    def stop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not stopped")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("cutlayer.compare.run_recipe", stop)
    assert main(["run", "demo", *QUICK]) == 143
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    with terminable() as terminated:
        assert not terminated()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert terminated()
