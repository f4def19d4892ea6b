"""Random numbers: every draw comes from a named stream, so no generator's state is ever saved."""

import hashlib
import threading
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
    return torch.Generator(device=device).manual_seed(_number(seed, purpose, client, round, step))


def _number(*key: int | str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "little") >> 1


ONE_GENERATOR = threading.RLock()  # torch has one for all threads


@contextmanager
def drawing(seed: int, purpose: str, client: int = 0, round: int = 0, step: int = 0) -> Iterator[None]:
    """Let layers that draw from the global generator, as dropout does, draw from a stream; the CPU's is left as it was, CUDA's is not."""
    generator, number = torch.default_generator, _number(seed, purpose, client, round, step)
    with ONE_GENERATOR:
        before = generator.get_state()
        # not torch.manual_seed, which takes note of its caller for devices that are not there: twenty times as slow
        generator.manual_seed(number)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(number)
        try:
            yield
        finally:
            generator.set_state(before)
