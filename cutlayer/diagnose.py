"""Looking at the gradient at the cut while training, in process, without traffic and without touching the run."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .client import Client, Record
from .cut import Smashed
from .program import Method, nothing
from .recipes.recipe import Recipe
from .server import Server
from .task import Batch
from .wire import Exchange


class Watched:
    """A method that every `every` steps also records what the cut looks like; the weights it trains are the same."""

    def __init__(self, method: Method, server: Server, every: int) -> None:
        self.method, self.server, self.every = method, server, every
        self.settle = getattr(method, "settle", nothing)

    def step(self, client: Client, batch: Batch) -> Exchange[Record]:
        seen: Mapping[str, Tensor] = {}
        if client.step % self.every == 0:
            with client.meter.unmeasured("client", client.id):
                seen = look(self.method, client, self.server, batch)
        record = yield from self.method.step(client, batch)
        return {**record, **seen}

    def state(self) -> dict[str, Any]:
        return self.method.state()

    def load(self, state: Mapping[str, Any]) -> None:
        self.method.load(state)


def watch(recipe: Recipe, method: Method, server: Server) -> Method:
    """Return the method, watched if the recipe says so."""
    return Watched(method, server, recipe.diagnose_every) if recipe.diagnose_every else method


def look(method: Method, client: Client, server: Server, batch: Batch) -> Record:
    """Return, for one batch, the norm and effective rank of z, and the cosine of the local and the server's gradient at the cut.

    The effective rank is exp of the entropy of the normalised singular values of z as (N, features) (Roy & Vetterli 2007). All of it
    is computed on copies, so neither statistics of BatchNorm nor gradients of the run move.
    """
    twin, top = copy.copy(client), copy.deepcopy(server.top_of(client.id))
    twin.modules = copy.deepcopy(client.modules)
    twin.meter, twin.owed = type(client.meter)(), []
    at = client.id, client.round, client.step  # whose draws the run's own pass has too
    with client.training.computing(twin.modules["bottom"], "bottom", *at, graph=False):
        z = Smashed.through(twin.modules["bottom"], batch)
    leaf = Smashed(z.main.float().requires_grad_(), z.others)
    flat = leaf.main.detach().flatten(1)
    record = {"activation_norm": flat.norm(dim=1).mean(), "effective_rank": effective_rank(flat)}
    local = getattr(method, "local", None)
    if local is None or "tail" in client.modules:
        return record
    loss, _ = local(twin, leaf, batch)
    if loss is None:
        return record
    (mine,) = torch.autograd.grad(loss, leaf.main)
    with server.training.computing(top, "top", *at):
        seen = leaf.main.clone() if server.copy_input else leaf.main
        true_loss = client.task.loss(top(seen, **leaf.others), batch.y)
    (true,) = torch.autograd.grad(true_loss, leaf.main)
    cosine = torch.nn.functional.cosine_similarity(mine.flatten(), true.flatten(), dim=0)
    return {**record, "gradient_cosine": cosine}


def effective_rank(rows: Tensor) -> Tensor:
    """Return exp(entropy) of the normalised singular values of rows (N, D); NaN if they are not finite."""
    if not bool(torch.isfinite(rows).all()):
        return rows.new_tensor(float("nan"))
    values = torch.linalg.svdvals(rows.float())
    p = values / values.sum().clamp_min(1e-12)
    return torch.exp(-(p * p.clamp_min(1e-12).log()).sum())
