"""What one sample's forward pass costs, part by part."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .cut import Smashed


def macs(modules: dict[str, nn.Module], input_shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-adds of one sample's forward pass through each part (matrix products and convolutions)."""
    device = next(modules["bottom"].parameters()).device
    was = {name: module.training for name, module in modules.items()}
    counts: dict[str, int] = {}
    with torch.no_grad():
        for module in modules.values():
            module.eval()
        values: dict[str, Smashed] = {}
        x = torch.zeros(1, *input_shape, device=device)
        for name in ("bottom", "auxiliary", "decoder", "top", "tail"):
            if name not in modules:
                continue
            with FlopCounterMode(display=False) as counter:
                if name == "bottom":
                    values["z"] = Smashed.of(modules[name](x))
                elif name == "tail":
                    modules[name](values["features"].main)
                else:
                    z = values["z"]
                    output = modules[name](z.main, **(z.others if name == "top" else {}))
                    if name == "top":
                        values["features"] = Smashed(output)
            counts[name] = counter.get_total_flops() // 2
    for name, module in modules.items():
        module.train(was[name])
    return counts
