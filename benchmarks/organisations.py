"""Three organisations, each with a folder of its own: data, certificate, marks. One is killed in the middle, and comes back.

A server with the test set and two clients with half each of the small CIFAR-10 run's training images, in their own files, train
over gRPC with mutual TLS. It is done twice, once undisturbed and once with a SIGKILL to the second client at a random batch; the final
weights have to be the same bits. Files of one's own are not augmented. Row: results/organisations.jsonl.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
from processes import ENVIRONMENT, command, free_port, positive, starting
from rich.console import Console
from safetensors.torch import load_file

import cutlayer as cl
from cutlayer.certs import Authority

NAMES = ("server", "alice", "bob")
OWN_DATA = '''"""This organisation's own data, which are in no other folder."""

import numpy as np
import torch
from torch.utils.data import TensorDataset

import cutlayer as cl


def data():
    raw = np.load("mine.npz")
    train, test = (TensorDataset(torch.from_numpy(raw[f"{part}_x"]), torch.from_numpy(raw[f"{part}_y"])) for part in ("train", "test"))
    return cl.data.from_datasets(train, test, 10)
'''
FLAGS = ["--scheme=splitfed_v1", "--num-clients=2", "--num-threads=1", "--diagnose-every=0", "--checkpoint-every=10"]
TINY = ["--model=resnet8", "--rounds=2", "--warmup-rounds=0", "--batch-size=16"]


def settle(folder: Path, data: Any, num_train: int, num_test: int) -> None:
    """Give every organisation its folder: half of the training images for either client, the test set for the server."""
    authority = Authority(folder / "authority")
    test_x, test_y = (t.numpy() for t in _tensors(data.test, torch.arange(num_test)))
    for k, name in enumerate(NAMES):
        mine = folder / name
        mine.mkdir()
        for path in authority.issue(name):
            shutil.copy(path, mine)  # with its mode: a key that others can read is refused
        (mine / "own_data.py").write_text(OWN_DATA)
        share = torch.arange(num_train)[k - 1 :: 2] if k else torch.arange(64)
        x, y = (t.numpy() for t in _tensors(data.train, share))
        tests = {"test_x": test_x, "test_y": test_y} if name == "server" else {"test_x": x[:8], "test_y": y[:8]}
        np.savez(mine / "mine.npz", train_x=x, train_y=y, **tests)


def _tensors(source: Any, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch = source.batch(index, None)
    return batch.x, batch.y


def train(folder: Path, out: str, recipe: list[str], kill_at: int) -> float:
    """Run the three to the end and return the seconds; bob kills himself at a batch (0: never) and is started again."""
    port, env = free_port(), {**ENVIRONMENT, "PYTHONPATH": str(Path(cl.__file__).parent.parent)}
    with starting() as start:

        def go(name: str, at: int) -> "subprocess.Popen[str]":
            words = ["serve", *recipe, f"--listen=127.0.0.1:{port}", "--clients=alice,bob"]
            if name != "server":
                words = ["join", *recipe, f"--server=127.0.0.1:{port}", f"--as={name}"]
            words += ["--data=own_data:data", "--ca=ca.pem", f"--cert={name}.pem", f"--key={name}.key", f"--out={out}"]
            with (folder / name / f"{out}.log").open("ab") as log:
                party = [sys.executable, str(Path(__file__).with_name("kill.py")), "--party", "step", str(at), *words]
                return start(party, stdout=log, env=env, cwd=folder / name)

        begin = time.monotonic()
        running = {name: go(name, kill_at if name == "bob" else 0) for name in NAMES}
        if kill_at:
            assert running["bob"].wait() == -signal.SIGKILL
            running["bob"] = go("bob", 0)
        for name, process in running.items():
            if process.wait():
                raise SystemExit((folder / name / f"{out}.log").read_text())
        return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tiny", action="store_true", help="digits, and no row")
    args = parser.parse_args()
    positive(args, "rounds")
    num_train, num_test = (96, 32) if args.tiny else (10_000, 10_000)
    data = cl.data.load("digits" if args.tiny else "cifar10", args.data_dir)
    recipe = [
        "demo" if args.tiny else "small-cifar10",
        *FLAGS,
        *(TINY if args.tiny else ["--num-train=none", f"--rounds={args.rounds}"]),
    ]
    steps = 6 if args.tiny else args.rounds * 40
    kill_at = 1 + int(torch.randint(steps, (), generator=torch.Generator().manual_seed(args.seed)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settle(folder, data, num_train, num_test)
        undisturbed = train(folder, "whole", recipe, 0)
        killed = train(folder, "killed", recipe, kill_at)
        for part in ("bottom", "top"):
            whole, again = (
                load_file(folder / "server" / out / "weights" / f"{part}.safetensors") for out in ("whole", "killed")
            )
            assert all(torch.equal(whole[key], again[key]) for key in whole), f"{part} differs"
        from cutlayer.report import read

        summary = read(folder / "server" / "killed").summary
        accuracy, repeated = summary["accuracy_final"], summary["bytes"]["up"].get("repeated", {}).get("wire", 0)
    line = f"bob was killed at batch {kill_at} of {steps} and came back: the same weights, {100 * accuracy:.2f} %"
    Console().print(f"{line}; {undisturbed:.0f} s undisturbed, {killed:.0f} s; {repeated / 1e6:.1f} MB were sent twice")
    if not args.tiny:
        row = {"killed_at": kill_at, "steps": steps, "equal": True, "accuracy": accuracy, "seconds": undisturbed}
        rows.write("organisations", {**row, "seconds_killed": killed, "repeated_bytes": repeated, "seed": args.seed})


if __name__ == "__main__":
    command(main)
