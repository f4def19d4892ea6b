"""Every benchmark runs in its tiny profile, and shows there what it shows in full: the naive twin has the same weights."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("rows", "cells"))
)
def test_tiny_profile(name, tmp_path):
    where = ["--out", str(tmp_path)] if 'add_argument("--out"' in (ROOT / "benchmarks" / f"{name}.py").read_text() else []
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--tiny", *where]
    results = ROOT / "benchmarks" / "results"
    before = {path: path.read_bytes() for path in results.glob("*")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in results.glob("*")} == before
