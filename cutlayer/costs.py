"""What one sample's forward pass costs, part by part."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .cut import Smashed
from .errors import BadInput
from .frozen import evaluating
from .task import Batch


def macs(modules: dict[str, nn.Module], batch: Batch) -> dict[str, int | None]:
    """Return the multiply-adds of the forward pass of a batch of one sample through each part (matrix products and convolutions).

    None: the part cannot be called with the activations at the cut alone, so its cost is unknown.
    """
    return {name: None if isinstance(count, Exception) else count for name, count in _counts(modules, batch)}


def known_macs(modules: dict[str, nn.Module], batch: Batch) -> dict[str, int]:
    """Return the same for a virtual clock; raises BadInput if the cost of a part is unknown."""
    counts: dict[str, int] = {}
    for name, count in _counts(modules, batch):
        if isinstance(count, Exception):
            why = f"{type(count).__name__}: {str(count).partition(chr(10))[0]}"
            raise BadInput(
                f"the multiply-adds of {name!r} cannot be counted ({why}), so simulated seconds would be wrong; "
                "drop uplink, downlink, latency, speeds and server_speed, or let its forward take the activations alone"
            ) from count
        counts[name] = count
    return counts


def _counts(modules: dict[str, nn.Module], batch: Batch) -> Iterator[tuple[str, int | Exception]]:
    """Yield the multiply-adds of each part, or the error of its forward pass."""
    values: dict[str, Smashed] = {}
    with evaluating(modules.values()), torch.no_grad():
        for name in [*[n for n in modules if n not in ("top", "tail")], *[n for n in ("top", "tail") if n in modules]]:
            try:
                with (
                    FlopCounterMode(display=False) as counter,
                    sdpa_kernel(SDPBackend.MATH),
                ):  # of others attention is not counted
                    _forward(name, modules[name], values, batch)
                yield name, counter.get_total_flops() // 2
            except Exception as error:  # a module of the user's own may ask for anything
                yield name, error


def _forward(name: str, module: nn.Module, values: dict[str, Smashed], batch: Batch) -> None:
    """Pass one sample through a part; `values` holds the activations at the cut and the features."""
    if name == "bottom":
        values["z"] = Smashed.through(module, batch)
    elif name == "tail":
        module(values["features"].main)
    elif name == "top":
        z = values["z"]
        values["features"] = Smashed(module(z.main, **z.others))
    else:
        values["z"].into(module)
