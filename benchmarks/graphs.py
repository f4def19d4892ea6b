"""SLPerf's schemes on graphs in one process and under MPI: seconds a round, the server's memory, accuracies that have to be the same.

GIN on five TUDataset sets, five clients with IID shares, 3 rounds of Adam at lr 0.01, cut before the readout (u_shaped: after the
second convolution and before the readout). Every process has one thread, and under MPI all ranks share this machine's cores. Seconds are
the median of the second and third round: results/graphs.jsonl. Accuracies over 60 rounds are those of slperf.py.
"""

import argparse
import tempfile
from pathlib import Path

import rows
from clients import measure
from processes import command
from rich.console import Console
from slperf import SETS, TAILED

SCHEMES = ("vanilla", "u_shaped", "splitfed_v1", "splitfed_v2", "splitfed_v3")
TAIL = [word for name, value in TAILED.items() for word in (f"--{name}", value)]
CLIENTS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--tiny", action="store_true", help="vanilla on digits with two clients, in one process, without rows")
    args = parser.parse_args()
    data = ["--data-dir", args.data_dir] if args.data_dir else []
    tiny = "--data digits --model resnet8 --num-train 32 --num-test 16 --optimizer sgd --cut shallow --batch-size 8".split()
    for name in SETS[:1] if args.tiny else SETS:
        for scheme in SCHEMES[:1] if args.tiny else SCHEMES:
            for transport in ("inprocess",) if args.tiny else ("inprocess", "mpi"):
                cell = {"set": name, "scheme": scheme, "transport": transport}
                if not args.tiny and rows.written("graphs", **cell):
                    continue
                words = ["graphs", "--scheme", scheme, "--rounds", "3", "--evaluate-every", "1", "--num-threads", "1", *data]
                words += tiny if args.tiny else ["--data", name, *(TAIL if scheme == "u_shaped" else [])]
                with tempfile.TemporaryDirectory() as folder:
                    found = measure(transport, 2 if args.tiny else CLIENTS, words, Path(folder))
                Console().print(f"{name}, {scheme}, {transport}: {found['seconds']:.2f} s, {100 * found['accuracy']:.2f} %")
                if not args.tiny:
                    rows.write("graphs", {**cell, **found, "num_threads": 1})


if __name__ == "__main__":
    command(main)
