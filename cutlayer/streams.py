"""Random numbers: every draw comes from a named stream, so no generator's state is ever saved."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def drawing(seed: int, purpose: str, client: int = 0, round: int = 0, step: int = 0) -> Iterator[None]:
    """Let layers that draw from the global generator, as dropout does, draw from a stream, and leave that generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, purpose, client, round, step).initial_seed())
        yield
