"""Memory of the client's measured step under each head: live tensors, and what autograd keeps for backward.

ResNet-20 on random images of CIFAR-10's shape, shallow cut, batches of 128, bfloat16, channels_last; two steps of each configuration.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import rows
from heads import CONFIGURATIONS
from processes import command

import cutlayer as cl
from cutlayer.console import console
from cutlayer.streams import stream

CHOSEN = (
    "conventional", "mlp", "lite + reconstruction", "block + reconstruction", "block + reconstruction, half backward",
    "block + reconstruction, quarter backward",
)  # fmt: skip


def measure(configuration: str, batch_size: int, precision: str) -> dict[str, object]:
    """Run two steps of a configuration and return both figures in bytes by side."""
    draw = stream(0, "bench")
    source = cl.data.Tensors(torch.randn(2 * batch_size, 3, 32, 32, generator=draw), torch.arange(2 * batch_size) % 10, 10)
    fields = {"method": "auxiliary_loss"} | {k: v for k, v in CONFIGURATIONS[configuration].items() if k != "hand_over"}
    if "scheme" in fields:
        del fields["method"]
    torch.manual_seed(0)
    summary = cl.run(
        cl.cut(cl.models.resnet20(10), "shallow"), cl.partition.contiguous(source, num_clients=1), rounds=1,
        batch_size=batch_size, precision=precision, memory_format="channels_last", momentum=0.9, weight_decay=5e-4,
        num_threads=torch.get_num_threads(), **fields,
    ).summary  # fmt: skip
    return {key: summary[key] for key in ("memory_figure", "peak_memory_bytes", "kept_for_backward_bytes")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="one small batch in float32 and no rows, to see that it works")
    args = parser.parse_args()
    batch_size, precision = (8, "float32") if args.tiny else (128, "bfloat16")
    for configuration in CHOSEN[:2] if args.tiny else CHOSEN:
        if not args.tiny and rows.written("memory", configuration=configuration):
            continue
        row = measure(configuration, batch_size, precision)
        live, kept = (row[key] for key in ("peak_memory_bytes", "kept_for_backward_bytes"))
        console.print(f"{configuration}: live {live}, kept for backward {kept}, bytes")
        if not args.tiny:
            rows.write("memory", {"configuration": configuration, "batch_size": batch_size, "precision": precision, **row})


if __name__ == "__main__":
    command(main)
