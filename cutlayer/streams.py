"""Random numbers: every draw comes from a named stream, so no generator's state is ever saved."""

import hashlib

import torch


def stream(
    seed: int,
    purpose: str,
    client: int = 0,
    round: int = 0,
    step: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """Return a generator that depends on the five arguments alone and shares nothing with any other stream."""
    key = f"{seed}/{purpose}/{client}/{round}/{step}".encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
    return torch.Generator(device=device).manual_seed(number)
