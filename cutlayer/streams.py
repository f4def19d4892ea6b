"""Random numbers: every draw comes from a named stream, so no generator's state is ever saved."""

import hashlib
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.random import mtrand

F = TypeVar("F", bound=Callable[..., Any])


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
NUMPY_GENERATOR = np.random.MT19937()


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


@contextmanager
def seeded_globals(seed: int, purpose: str, client: int = 0, round: int = 0, step: int = 0) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python from a stream, and restore them afterwards (CUDA's is not restored).

    Data sets draw from them, as torchvision's transforms do. Other threads that seed them wait.
    """
    key = seed, purpose, client, round, step
    number = _number(*key)
    with drawing(*key), _numpy_generator(number):
        before = random.getstate()
        random.seed(number)
        try:
            yield
        finally:
            random.setstate(before)


@contextmanager
def _numpy_generator(number: int) -> Iterator[None]:
    """Let numpy's global functions draw from another bit generator; to set the state of the present one takes twice as long."""
    before, state = mtrand.get_bit_generator(), np.random.get_state(legacy=False)
    mtrand.set_bit_generator(NUMPY_GENERATOR)
    np.random.seed(number & 0xFFFFFFFF)
    try:
        yield
    finally:
        mtrand.set_bit_generator(before)
        if state["has_gauss"]:  # the second of a pair of normal numbers, which lies outside the bit generator
            np.random.set_state(state)


def self_contained(function: F) -> F:
    """Mark a function that reads or augments samples and draws from no global generator; an override has no mark."""
    function.self_contained = True  # type: ignore[attr-defined]
    return function
