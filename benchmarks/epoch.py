"""What crossing processes costs: an epoch of ResNet-20, shallow cut, in process, over MPI with 2 ranks, and over gRPC with mutual TLS.

10,000 images of CIFAR-10, bfloat16, batches of 128, one client, conventional and decoupled with `mlp`. In process both sides take turns
with both cores; as processes each side has one core's thread, and a decoupled client computes while the server does. Seconds are those
between the ends of the first and the second round, each with an evaluation of 500 images: results/epoch.jsonl.
"""

import argparse
import json
import tempfile
from pathlib import Path

import rows
from processes import command, cutlayer, ended, free_port, mpiexec, positive
from rich.console import Console

SCHEMES = {
    "conventional": ["--scheme", "vanilla"],
    "decoupled": ["--scheme", "dsl_seq", "--auxiliary", "mlp", "--reconstruction", "none", "--aux-weight", "1.0"],
}
SIZE = "--num-train 10000 --num-test 500 --evaluate-every 1 --rounds 2 --warmup-rounds 0".split()
TINY = "--data digits --num-train 128 --model resnet8 --num-test 64 --rounds 2 --warmup-rounds 0".split()


def run(transport: str, words: list[str], folder: Path) -> float:
    """Run a recipe on a transport and return the seconds of its second round."""
    out = folder / "server"
    if transport == "inprocess":
        ended(cutlayer("run", *words, "--num-threads", "2", "--out", str(out)))
    elif transport == "mpi":
        ended(mpiexec(2) + cutlayer("run", *words, "--num-threads", "1", "--transport", "mpi", "--out", str(out)))
    else:
        ended(cutlayer("certs", "demo", str(folder / "certs")))
        certs = folder / "certs"
        keys = {
            who: ["--ca", str(certs / "ca.pem"), "--cert", str(certs / f"{who}.pem"), "--key", str(certs / f"{who}.key")]
            for who in ("server", "client0")
        }
        where, both = f"127.0.0.1:{free_port()}", [*words, "--num-threads", "1"]
        mine = ["--server", where, "--as", "client0", "--out", str(folder / "client0"), *keys["client0"]]
        ended(
            cutlayer("serve", *both, "--listen", where, "--out", str(out), *keys["server"]),
            cutlayer("join", *both, *mine),
        )
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    return float(records[1]["seconds_total"] - records[0]["seconds_total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each in all; those that have rows are not run again")
    parser.add_argument("--data-dir")
    parser.add_argument("--tiny", action="store_true", help="decoupled on digits, once, without rows, whatever --repeats says")
    args = parser.parse_args()
    positive(args, "repeats")
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
    command(main)
