"""Play the cases of tests/guard with this tree and with another commit, side by side, and compare weights, records and bytes.

Digests of weights cannot be committed, because other processors give other bits; so both versions run here. A difference is
allowed only by a new row of tests/guard/CHANGES.md. Exit code 0: no other difference; 1: some; 2: nothing was compared.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUARD = ROOT / "tests" / "guard"
sys.path.append(str(GUARD))

from cases import CASES
from changes import Change, added
from outcomes import differences, read as read_outcome

POLL_S = 0.5


def git(*words: str) -> str:
    """Return the output of a git command in this repository; raises SystemExit with git's own words if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"guard: {done.stderr.strip() or ' '.join(words)}", file=sys.stderr)
        raise SystemExit(2)
    return done.stdout.strip()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out into a worktree of its own, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="guard-") as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def dependencies(tree: Path) -> tuple[object, ...]:
    """Return everything that decides which libraries a version runs with."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    constraints = tree / "constraints.txt"
    return project["dependencies"], project.get("optional-dependencies"), constraints.exists() and constraints.read_text()


def interpreter(tree: Path) -> str:
    """Return the Python that runs a version: this one, or one of its own environment if its dependencies differ."""
    if dependencies(tree) == dependencies(ROOT):
        return sys.executable
    print("The dependencies differ; installing those of the other commit.", flush=True)
    own = tree / ".venv"
    install = 'source scripts/setup.sh && setup "[dev]"'
    subprocess.run(["bash", "-c", install], cwd=tree, env={**os.environ, "CUTLAYER_VENV": str(own)}, check=True)
    return str(own / "bin" / "python")


def start(tree: Path, out: Path, names: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start playing cases with the version in `tree` into `out`."""
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tree), "CUTLAYER_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [interpreter(tree), str(GUARD / "play.py"), str(out), *names], env=environment, cwd=out, stdout=file, stderr=file
        )


def playable(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the cases whose data are there, and the reason for each of the others."""
    found = os.environ.setdefault("CUTLAYER_DATA", str(ROOT.parent / "shared" / "data"))
    lacking = {
        name: f"no {CASES[name].data} in CUTLAYER_DATA={found}"
        for name in names
        if CASES[name].data and not (Path(found) / str(CASES[name].data)).is_dir()
    }
    return [name for name in names if name not in lacking], lacking


def compare(old: Path, new: Path, name: str, allowed: Sequence[Change]) -> bool:
    """Print what differs in one case, and return whether all of it is allowed."""
    before, after = read_outcome(old, name), read_outcome(new, name)
    found = differences(before, after)
    if not found:
        print(f"  {name}: equal{'' if after.failure is None else f' (neither finishes: {after.failure[-200:]})'}", flush=True)
    for kind, words in found.items():
        items = [change.item for change in allowed if change.allows(name, kind)]
        verdict = f"allowed by {items[0]}" if items else "NOT ALLOWED"
        print(f"  {name}: {kind} differ, {verdict}: {words}", flush=True)
    return all(any(change.allows(name, kind) for change in allowed) for kind in found)


def play_both(tree: Path, folder: Path, names: Sequence[str], allowed: Sequence[Change]) -> bool:
    """Play the cases with both versions at once and compare each as soon as both have it; return whether nothing is wrong."""
    versions = {"old": tree, "new": ROOT}
    players = [start(where, folder / which, names, folder / f"{which}.log") for which, where in versions.items()]
    right = True
    try:
        for name in names:
            while not all((folder / which / f"{name}.done").exists() for which in versions):
                for which, player in zip(versions, players, strict=True):
                    if player.poll() is not None and not (folder / which / f"{name}.done").exists():
                        print(
                            f"guard: the {which} version stopped: {(folder / f'{which}.log').read_text()[-2000:]}",
                            file=sys.stderr,
                        )
                        raise SystemExit(2)
                time.sleep(POLL_S)
            right = compare(folder / "old", folder / "new", name, allowed) and right
    finally:
        for player in players:
            player.kill()
            player.wait()
    return right


def main() -> int:
    """Compare, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="the commit to compare with")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only these cases (default: all)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the worktree is removed then, too
    if unknown := [name for name in given.cases if name not in CASES]:
        parser.error(f"unknown case {unknown[0]!r}; cases are {', '.join(CASES)}")
    commit = git("rev-parse", "--verify", f"{given.commit}^{{commit}}")
    names, lacking = playable(given.cases or list(CASES))
    with checkout(commit) as tree, tempfile.TemporaryDirectory(prefix="guard-runs-") as folder:
        earlier = tree / "tests" / "guard" / "CHANGES.md"
        allowed = added(earlier.read_text() if earlier.exists() else "", (GUARD / "CHANGES.md").read_text())
        print(f"{len(names)} cases with {commit[:12]} and with this tree:", flush=True)
        right = play_both(tree, Path(folder), names, allowed)
    for name, reason in lacking.items():
        print(f"  {name}: not played, {reason}")
    print(
        "no difference that is not allowed"
        if right
        else "there are differences; mend them, or add a row to tests/guard/CHANGES.md"
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
