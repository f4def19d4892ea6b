"""How a benchmark that is no table begins and ends, and the processes that it starts, of which it leaves none behind."""

import argparse
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from cutlayer.console import INTERRUPTED, WRONG, console, told, trace
from cutlayer.errors import BadInput
from cutlayer.saved_tensors import heard

ENVIRONMENT = {
    **os.environ, "OMP_WAIT_POLICY": "passive", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}  # fmt: skip
LIMIT_S = 1800.0


def command(main: Callable[[], None]) -> None:
    """Run a benchmark; what it cannot do and Ctrl-C are told in one line."""
    try:
        with heard():
            main()
    except KeyboardInterrupt:
        console.print("interrupted; rows that are written stay")
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # a thread that still computes would abort an orderly exit
    except Exception as error:
        if (found := told(error)) is None:
            raise
        trace(error)
        sys.exit(f"{Path(sys.argv[0]).stem}: {found[1]}")


def positive(args: argparse.Namespace, *names: str) -> None:
    """Raise BadInput if one of these numbers is none of something."""
    for name in names:
        if getattr(args, name) <= 0:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(args, name)}: take a number above 0")


def cutlayer(*words: str) -> list[str]:
    """Return the command that runs the command line with these words."""
    return [sys.executable, "-m", "cutlayer.cli", *words]


def mpiexec(ranks: int) -> list[str]:
    """Return the launcher of so many ranks that lies beside this Python."""
    return [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks)]


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def starting() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Yield what starts a process and keeps its words; none of those that it started runs after the block."""
    with ExitStack() as stack:

        def start(words: list[str], **how: Any) -> "subprocess.Popen[str]":
            kept = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": ENVIRONMENT}
            process = subprocess.Popen(words, text=True, **{**kept, **how})
            stack.callback(process.wait)
            stack.callback(process.terminate)  # not kill: mpiexec ends its ranks
            return process

        yield start


def ended(*commands: list[str]) -> str:
    """Run commands side by side and return what they said; raises SystemExit with what the first that fails says of it."""
    said, end = "", time.monotonic() + LIMIT_S
    with starting() as start:
        running = [start(words) for words in commands]
        while running:
            for process in [*running]:
                with suppress(subprocess.TimeoutExpired):
                    words, _ = process.communicate(timeout=0.5)
                    if process.returncode:
                        wrong = re.findall("^cutlayer: .*", words, re.MULTILINE) if process.returncode == WRONG else []
                        raise SystemExit((wrong or [words])[-1])
                    running.remove(process)
                    said += words
            if time.monotonic() > end:
                raise SystemExit(f"{running[0].args!r} has not ended after {LIMIT_S:g} s")
    return said
