"""Play cases with the cutlayer that can be imported here: python play.py OUT CASE...

Only what every version has is used: the command line, and the names of `import cutlayer as cl`.
"""

import importlib
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from cases import BASE, CASES
from torch import nn
from torch.utils.data import Dataset, TensorDataset

MINUTES = 3


def flags(fields: dict) -> list[str]:
    """Return recipe fields as flags of the command line."""
    words = []
    for name, value in fields.items():
        text = (
            ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value
        )
        words += [f"--{name.replace('_', '-')}", str(text)]
    return words


def command(words: list[str]) -> list[str]:
    """Return the command line of the version under test as a process."""
    return [sys.executable, str(Path(__file__).with_name("entry.py")), *words]


def run(*commands: list[str]) -> None:
    """Run processes side by side; raises RuntimeError with the output of the first one that fails."""
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for words in commands]
    try:
        for process in started:
            output, _ = process.communicate(timeout=60 * MINUTES)
            if process.returncode:
                raise RuntimeError(f"exit code {process.returncode}: {output[-2000:]}")
    finally:
        for process in started:
            process.kill()


def over_mpi(fields: dict, out: Path) -> None:
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    words = ["run", "demo", *flags(fields), "--transport", "mpi", "--out", str(out)]
    run([str(mpiexec), "--oversubscribe", "-n", str(1 + fields["num_clients"]), *command(words)])


def over_grpc(fields: dict, out: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = ["demo", *flags(fields), "--insecure"]
    parties = [command(["serve", *common, "--listen", address, "--out", str(out)])]
    for k in range(fields["num_clients"]):
        joining = ["join", *common, "--server", address, "--as", f"client{k}", "--out", f"{out}-client{k}"]
        parties.append(command(joining))
    run(*parties)


class Drawing(Dataset):
    """Items that draw from all three global generators, as transforms do."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i] + 0.1 * (torch.rand(6) + random.random() + float(np.random.rand())), self.y[i]


def own(draws: bool, out: Path) -> None:
    """Train the user's own network with dropout on own data, through the Python interface."""
    import cutlayer as cl

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    x, y = torch.randn(44, 6), torch.randint(0, 3, (44,))
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    data = cl.data.from_datasets((Drawing if draws else TensorDataset)(x, y), TensorDataset(x[:16], y[:16]), 3)
    shares = cl.partition.iid(data.train, 2)
    cl.run(cl.cut(model, at="2"), shares, out=out, scheme="splitfed_v1", rounds=2, batch_size=8, lr=0.05, num_threads=1)


def play(name: str, out: Path) -> None:
    """Play one case into OUT/<name>."""
    case, target = CASES[name], out / name
    fields = {**BASE, **case.fields}
    if case.transport == "mpi":
        over_mpi(fields, target)
    elif case.transport == "grpc":
        over_grpc(fields, target)
    elif case.transport == "python":
        own(name == "own-drawing", target)
    else:
        main = importlib.import_module("entry").main
        if code := main(["run", "demo", *flags(fields), "--out", str(target)]):
            raise RuntimeError(f"exit code {code}")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for each in sys.argv[2:]:
        try:
            play(each, out)
            failure = None
        except BaseException as error:  # whatever a version does wrong is what is to be seen
            failure = f"{type(error).__name__}: {error}"
        (out / f"{each}.done").write_text(json.dumps(failure))
