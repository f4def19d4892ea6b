"""How benchmarks start the command line, alone and under mpiexec, whoever runs them and however few cores there are."""

import os
import sys
from pathlib import Path

ENVIRONMENT = {
    **os.environ, "OMP_WAIT_POLICY": "passive", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip


def cutlayer(*words: str) -> list[str]:
    """Return the command that runs the command line with these words."""
    return [sys.executable, "-m", "cutlayer.cli", *words]


def mpiexec(ranks: int) -> list[str]:
    """Return the launcher of so many ranks that lies beside this Python."""
    return [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]
