"""A client's optimizer state by name, for when it travels with the weights."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .client import Client


SLOTS: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.SGD: frozenset({"momentum_buffer"}),
    torch.optim.Adam: frozenset({"step", "exp_avg", "exp_avg_sq"}),
}


def parameter_names(client: "Client") -> dict[int, str]:
    """Return the <module>.<parameter> of each parameter that travels, by its id."""
    return {id(p): f"{name}.{key}" for name in client.travels for key, p in client.modules[name].named_parameters()}


def slots(client: "Client") -> dict[str, Tensor]:
    """Return the optimizer's tensors by optimizer/<module>.<parameter>/<slot>."""
    names = parameter_names(client)
    return {
        f"optimizer/{names[id(p)]}/{slot}": value
        for p, values in client.optimizer.state.items()
        if id(p) in names
        for slot, value in values.items()
        if isinstance(value, Tensor)
    }


def load_slots(client: "Client", tensors: Mapping[str, Tensor]) -> None:
    """Replace the optimizer's state by what travelled."""
    parameters = {f"{n}.{key}": p for n in client.travels for key, p in client.modules[n].named_parameters()}
    client.optimizer.state.clear()
    for role, value in tensors.items():
        _, name, slot = role.split("/")
        client.optimizer.state[parameters[name]][slot] = value
