"""What crossing processes costs: an epoch of ResNet-20, shallow cut, in process, over MPI with 2 ranks, and over gRPC with mutual TLS.

10,000 images of CIFAR-10, bfloat16, batches of 128, one client, conventional and decoupled with `mlp`. In process both sides take turns
with both cores; as processes each side has one core's thread, and a decoupled client computes while the server does. Seconds are those
between the ends of the first and the second round, each with an evaluation of 500 images: results/epoch.jsonl.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import rows
from processes import ENVIRONMENT, cutlayer, mpiexec
from rich.console import Console

SCHEMES = {
    "conventional": ["--scheme", "vanilla"],
    "decoupled": ["--scheme", "dsl_seq", "--auxiliary", "mlp", "--reconstruction", "none", "--aux-weight", "1.0"],
}
SIZE = "--num-train 10000 --num-test 500 --evaluate-every 1 --rounds 2 --warmup-rounds 0".split()
TINY = "--data digits --num-train 128 --model resnet8 --num-test 64 --rounds 2 --warmup-rounds 0".split()


def go(command: list[str], **how: Any) -> "subprocess.Popen[str]":
    """Start a process whose words are kept for when it fails."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)


def ended(*processes: "subprocess.Popen[str]") -> None:
    """Wait for processes, and show what they said if one failed."""
    for process in processes:
        said, _ = process.communicate(timeout=1200)
        if process.returncode:
            raise SystemExit(said)


def run(transport: str, words: list[str], folder: Path) -> float:
    """Run a recipe on a transport and return the seconds of its second round."""
    out = folder / "server"
    if transport == "inprocess":
        ended(go(cutlayer("run", *words, "--num-threads", "2", "--out", str(out)), env=ENVIRONMENT))
    elif transport == "mpi":
        ended(
            go(
                mpiexec(2) + cutlayer("run", *words, "--num-threads", "1", "--transport", "mpi", "--out", str(out)),
                env=ENVIRONMENT,
            )
        )
    else:
        ended(go(cutlayer("certs", "demo", str(folder / "certs"))))
        certs = folder / "certs"
        keys = {
            who: ["--ca", str(certs / "ca.pem"), "--cert", str(certs / f"{who}.pem"), "--key", str(certs / f"{who}.key")]
            for who in ("server", "client0")
        }
        where, both = "127.0.0.1:7919", [*words, "--num-threads", "1"]
        server = go(cutlayer("serve", *both, "--listen", where, "--out", str(out), *keys["server"]), env=ENVIRONMENT)
        mine = ["--server", where, "--as", "client0", "--out", str(folder / "client0"), *keys["client0"]]
        client = go(cutlayer("join", *both, *mine), env=ENVIRONMENT)
        ended(server, client)
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    return float(records[1]["seconds_total"] - records[0]["seconds_total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each in all; those that have rows are not run again")
    parser.add_argument("--data-dir")
    parser.add_argument("--tiny", action="store_true", help="decoupled on digits, once, without rows, whatever --repeats says")
    args = parser.parse_args()
    for repeat in range(1 if args.tiny else args.repeats):
        for scheme, own in list(SCHEMES.items())[-1 if args.tiny else 0 :]:
            for transport in ("inprocess", "mpi", "grpc"):
                cell = {"scheme": scheme, "transport": transport, "repeat": repeat, "options": own}
                if not args.tiny and rows.written("epoch", **cell):
                    continue
                words = ["demo" if args.tiny else "small-cifar10", *own, "--num-clients", "1", *(TINY if args.tiny else SIZE)]
                words += ["--diagnose-every", "0"] + (["--data-dir", args.data_dir] if args.data_dir else [])
                with tempfile.TemporaryDirectory() as folder:
                    seconds = run(transport, words, Path(folder))
                Console().print(f"{scheme}, {transport}: {seconds:.2f} s")
                if not args.tiny:
                    rows.write("epoch", {**cell, "seconds": seconds})


if __name__ == "__main__":
    main()
