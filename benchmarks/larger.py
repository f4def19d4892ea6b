"""Larger inputs: what an epoch of ResNet-50 on ImageNet costs at each cut, and seconds a batch here on generated images of 224x224.

Bytes are those of 1,281,167 images with float32 and with 8-bit activations; multiply-adds, seconds and what autograd keeps are measured in
two rounds of two batches of generated images that lie as JPEG files in folders by class and are read from disk; seconds are those of the
second round: results/larger.jsonl.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rows
from PIL import Image
from processes import command, positive
from rich.console import Console

from cutlayer.estimate import estimate
from cutlayer.recipes import load
from cutlayer.run import run_recipe

IMAGENET = 1_281_167
CUTS = ("stem", "shallow", "middle", "deep")
METHODS: dict[str, dict[str, Any]] = {
    "conventional": {"scheme": "vanilla", "method": "backprop"},
    "decoupled, mlp": {"auxiliary": "mlp"},
    "decoupled, mlp, float8": {"auxiliary": "mlp", "codec": {"smashed": "float8"}},
}


def generated(folder: Path, images: int) -> Path:
    """Write JPEG files of two classes, smooth noise of about 400x300, and return the folder."""
    draw = np.random.default_rng(0)
    for split, n in (("train", images), ("val", 2)):
        for i in range(n):
            where = folder / split / ("odd" if i % 2 else "even")
            where.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(draw.integers(0, 255, (12, 16, 3)).astype(np.uint8))
            small.resize((400 - i, 300), Image.Resampling.BICUBIC).save(where / f"{i}.jpg")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tiny", action="store_true", help="the deepest cut and batches of 2, without rows")
    args = parser.parse_args()
    positive(args, "batch_size")
    size = 2 if args.tiny else args.batch_size
    with tempfile.TemporaryDirectory() as folder:
        images = generated(Path(folder), 2 * size)
        for cut in CUTS[-1:] if args.tiny else CUTS:
            for what, own in list(METHODS.items())[-1 if args.tiny else 0 :]:
                if not args.tiny and rows.written("larger", cut=cut, what=what):
                    continue
                base = {"data_dir": str(images), "cut": cut, "batch_size": size, "rounds": 2, "warmup_rounds": 0, "lr": 1e-3}
                recipe = load("images", **{**base, **own})
                found = estimate(recipe)
                result = run_recipe(recipe)
                first, second = (record["seconds"] for record in result.records)
                sample = {
                    w: sum(b for r, b in roles.items() if r in ("smashed", "cut_grad")) / (4 * size)
                    for w, roles in found.payload.items()
                }
                row = {
                    "cut": cut, "what": what, "bytes_per_image": sample, "epoch_bytes": {w: b * IMAGENET for w, b in sample.items()},
                    "macs_per_sample": found.macs_per_sample, "peak_memory_bytes": result.summary["peak_memory_bytes"],
                    "memory_figure": result.summary["memory_figure"],
                    "batch_size": size, "num_threads": recipe.num_threads,
                    "seconds_per_batch": sum(v - first[k] for k, v in second.items() if k.startswith(("client", "server"))) / 2,
                }  # fmt: skip
                Console().print(
                    f"{cut}, {what}: {row['epoch_bytes']} bytes an epoch, {row['seconds_per_batch']:.2f} s a batch of {size}"
                )
                if not args.tiny:
                    rows.write("larger", row)


if __name__ == "__main__":
    command(main)
