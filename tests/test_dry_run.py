"""A dry run is short, and asks nothing of a user's method but steps."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from cutlayer.estimate import estimate
from cutlayer.recipes import load

SMALL = {"num_train": 100, "num_test": 32, "rounds": 2, "batch_size": 16, "model": "resnet8", "num_clients": 2}
STEPS: list[int] = []


@dataclass(frozen=True)
class Options:
    send_every: int = 1000
    probe_every: int = 7


class Sparse:
    """Sends every `send_every` steps; counts its steps, and cannot be loaded."""

    Options: ClassVar[type] = Options
    needs_labels: ClassVar[bool] = True

    def __init__(self, options, client):
        self.options = options

    @staticmethod
    def comes_back(options):
        return True

    def step(self, client, batch):
        STEPS.append(client.step)
        z = client.forward(batch)
        reply = (yield from client.uplink(z, batch)) if client.step % self.options.send_every == 0 else None
        client.update(client.task.loss(z.main.flatten(1)[:, :10], batch.y), z, reply.tensors if reply else {})
        return {}

    def state(self):
        return {}

    def load(self, state):
        raise AssertionError("a dry run loads no state")


class Declared(Sparse):
    @staticmethod
    def sends(options, round, step, seen):
        from cutlayer.program import Sends

        return Sends(step % options.send_every == 0, step % options.send_every == 0)


@pytest.mark.parametrize("sizes", [{}, {"partition": "dirichlet", "num_clients": 5}, {"server_order": "concatenated"}], ids=str)
@pytest.mark.parametrize("method", ["Sparse", "Declared"])
def test_a_dry_run_takes_at_most_two_training_steps(method, sizes):
    STEPS.clear()
    found = estimate(load("demo", **{**SMALL, "schedule": "parallel", "method": f"test_dry_run:{method}", **sizes}))
    assert len(STEPS) <= 2
    assert ("does not declare in which steps it sends" in found.inexact) == (method == "Sparse")


def test_a_dry_run_of_a_method_that_declares_its_steps_is_exact(tmp_path):
    from cutlayer import run_recipe

    recipe = load("demo", **SMALL, schedule="parallel", method="test_dry_run:Declared", send_every=3)
    counted = run_recipe(recipe).summary["bytes"]
    for direction, table in estimate(recipe).payload.items():
        assert table == {role: cell["payload"] for role, cell in counted[direction].items() if cell["payload"]}
