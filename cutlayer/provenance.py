"""The commit, versions and machine of a run."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

CODE = (":(top)", ":(top,exclude)benchmarks/results", ":(top,exclude)docs")  # files whose changes make a commit dirty


def provenance() -> dict[str, Any]:
    """Return commit, versions and machine, as every row of results carries them."""
    root = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD") if (root.parent / ".git").exists() else ""
    dirty = "+" if commit and git("status", "--porcelain", "--untracked-files=no", "--", *CODE) else ""
    return {
        "commit": (commit + dirty) or f"cutlayer {version('cutlayer')}",
        "versions": {"cutlayer": version("cutlayer"), "torch": torch.__version__, "python": platform.python_version()},
        "machine": {
            "processor": processor(), "threads": torch.get_num_threads(), "system": platform.system(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }  # fmt: skip


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
