"""The story of a client: connect, train on data that stay here, come back by itself when the line breaks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from .data.description import describe
from .data.partition import split
from .errors import BadInput
from .handshake import about
from .integrity import check_trained
from .private import make_folder, write
from .recipes.recipe import Recipe, make
from .recipes.toml import to_toml
from .run import data_of, parts_of, task_of
from .run_folder import check_folder, save_weights
from .sides import member
from .trained_data import check_trained_data, keep_description
from .transports.grpc_client import NetworkLine
from .transports.grpc_common import Tls
from .transports.session import MAX_CONTROL
from .wire import Message


def join(
    recipe: Recipe,
    out: Path,
    *,
    server: str,
    name: str,
    tls: Tls | None = None,
    own_data: bool = False,
    patience: float = 300.0,
    keepalive_s: float = 20.0,
    say: Callable[[str], None] = lambda line: None,
    tick: Callable[[], None] = lambda: None,
) -> Path:
    """Train as one client of a server to the end, and return the folder with this client's trained modules.

    With `own_data` the whole training set of the recipe's data is this client's; else it is its share under the recipe's partition.
    States are kept in `out`, so the same command goes on if this process is killed; where training is
    finished it only says so. Raises BadInput, also if `out` holds another recipe,
    and RunFailed if the server stops or stays away for `patience` seconds.
    """
    recipe = make({**recipe.flat(), "transport": "grpc"})
    check_folder(recipe, out)
    if any((out / "weights").glob("*.safetensors")) and not (out / "marks").exists():
        check_trained(out)
        say(f"training is finished; its weights are in {out / 'weights'} (to train again, choose another --out)")
        return out / "weights"
    torch.set_num_threads(recipe.num_threads)
    data = data_of(recipe).to(recipe.device)
    description = describe(data)
    check_trained_data(out, description)  # before the server is asked
    parts, task = parts_of(recipe, data), task_of(recipe)
    line = NetworkLine(
        server, name, about(recipe, data, dealt=not own_data), tls=tls, patience=patience, keepalive_s=keepalive_s, say=say
    )
    line.session.max_message = lambda: MAX_CONTROL  # until this client knows what else may come
    try:
        k = line.connect()
        if not 0 <= k < recipe.num_clients:
            raise BadInput(f"the server says that {name} is client {k}, and num_clients = {recipe.num_clients}")
        make_folder(out)
        # not before, because a recipe that the server refuses may be corrected in this folder
        write(out / "recipe.toml", to_toml(recipe.flat()))
        keep_description(out, description)
        share = torch.arange(len(data.train)) if own_data else split(data.train, recipe).shares[k]
        line.samples = len(share)
        mine = member(recipe, parts, task, data.train, share, k, out, tick)

        def save(final: Message) -> None:
            mine.checks.final(final)
            trained = mine.client.weights()
            for role, tensor in final.tensors.items():
                trained[role.removeprefix("weights/")].copy_(tensor)
            modules = {
                part: module for part, module in mine.client.modules.items() if next(module.parameters(), None) is not None
            }
            save_weights(modules, out / "weights")

        line.session.max_message = lambda: mine.checks.largest
        mine.play(line, save)
    finally:
        line.close()
    if line.ended:  # else the server may ask for a state again
        shutil.rmtree(out / "marks", ignore_errors=True)
    return out / "weights"
