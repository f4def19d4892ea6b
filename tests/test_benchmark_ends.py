"""Benchmarks that are no tables answer bad input and Ctrl-C in one line, and leave no process behind."""

import importlib
import os
import runpy
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from network import until

FOLDER = ROOT / "benchmarks"
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("processes")


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("organisations", ["--data-dir", "/nonexistent"], "^organisations: data_dir = '/nonexistent' is no folder.*$"),
        ("epoch", ["--repeats", "-1"], "^epoch: --repeats -1: take a number above 0$"),
        ("throughput", ["--transports", "pigeon"], "^throughput: unknown transport 'pigeon'.*$"),
    ],
)
def test_bad_input_is_one_line(name, flags, said, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
    with pytest.raises(SystemExit, match=said):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def test_an_interrupted_benchmark_says_so_in_one_line_and_leaves_nobody(tmp_path):
    command = [sys.executable, str(FOLDER / "kill.py"), "--tiny", "--out", str(tmp_path)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    heeded = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (a shell's background jobs ignore it)
    benchmark = subprocess.Popen(command, start_new_session=True, cwd=tmp_path, preexec_fn=heeded, **how)
    until((tmp_path / "in-a-round" / "0" / "client1.log").exists, 60)
    time.sleep(0.5)  # its process starts once its log is there
    benchmark.send_signal(signal.SIGINT)
    said, _ = benchmark.communicate(timeout=30)
    assert benchmark.returncode == 130
    assert said == "seed 0\ninterrupted; rows that are written stay\n"
    with pytest.raises(ProcessLookupError):
        os.killpg(benchmark.pid, 0)


def test_when_one_process_fails_the_others_are_ended(processes, monkeypatch):
    started = []

    class Seen(subprocess.Popen):
        def __init__(self, *args, **how):
            super().__init__(*args, **how)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Seen)
    with pytest.raises(SystemExit, match="no port"):
        processes.ended(SLEEPER, [sys.executable, "-c", "raise SystemExit('no port')"])
    assert [process.returncode for process in started] == [-signal.SIGTERM, 1]
