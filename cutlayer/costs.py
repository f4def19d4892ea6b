"""What one sample's forward pass costs, part by part."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .cut import Smashed
from .frozen import evaluating
from .task import Batch


def macs(modules: dict[str, nn.Module], batch: Batch) -> dict[str, int]:
    """Return the multiply-adds of the forward pass of a batch of one sample through each part (matrix products and convolutions)."""
    counts: dict[str, int] = {}
    with evaluating(modules.values()), torch.no_grad():
        values: dict[str, Smashed] = {}
        for name in [*[n for n in modules if n not in ("top", "tail")], *[n for n in ("top", "tail") if n in modules]]:
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # of others attention is not counted
                if name == "bottom":
                    values["z"] = Smashed.through(modules[name], batch)
                elif name == "tail":
                    modules[name](values["features"].main)
                else:
                    z = values["z"]
                    if name == "top":
                        values["features"] = Smashed(modules[name](z.main, **z.others))
                    else:
                        z.into(modules[name])
            counts[name] = counter.get_total_flops() // 2
    return counts
