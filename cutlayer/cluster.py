"""The story of a run under mpiexec: the same recipe, a rank for the server and one for each client."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .data.partition import split
from .errors import Advice, BadInput, RunFailed
from .handshake import about, disagreement, doubts
from .labels_cross import warn_if_inputs_cross
from .outputs import Result
from .recipes.recipe import Recipe
from .rounds import Progress
from .run import data_of, parts_of, task_of
from .run_folder import alone_in, check_folder
from .sides import ServerSide, member
from .transports import mpi


def run(
    recipe: Recipe, out: Path, *, progress: Progress | None = None, say: Callable[[str], None] = lambda line: None, **_: Any
) -> Result | None:
    """Run a recipe on the ranks of this mpiexec, to the end or on from the marks of all; the result is at rank 0 alone.

    Raises BadInput unless there are 1 + num_clients ranks. When a rank fails, all stop with its error within seconds.
    """
    world = mpi.World()
    if world.size != 1 + recipe.num_clients:
        n = 1 + recipe.num_clients
        raise BadInput(
            f"num_clients = {recipe.num_clients} needs {n} ranks, and here are {world.size}: mpiexec -n {n} cutlayer run ..."
        )
    try:
        with alone_in(out if world.rank == 0 else None):
            return _run(world, recipe, out, progress, say)
    except mpi.Ended:
        shutil.rmtree(out / f"client{world.rank - 1}", ignore_errors=True)
        return None
    except (mpi.Stopped, mpi.Refused) as stopped:
        if world.rank == 0:
            world.tell_all(kind="stop", why=str(stopped), bad_input=isinstance(stopped, BadInput))
        raise
    except BaseException as error:
        why = f"rank {world.rank} ({'server' if world.rank == 0 else f'client{world.rank - 1}'}): {_line(error)}"
        if world.rank == 0:
            world.tell_all(kind="stop", why=why, bad_input=isinstance(error, BadInput))
        else:
            world.tell(0, kind="error", why=why, bad_input=isinstance(error, BadInput))
            world.leave()
        raise


def _run(world: mpi.World, recipe: Recipe, out: Path, progress: Progress | None, say: Callable[[str], None]) -> Result | None:
    k = world.rank - 1
    if k < 0:
        check_folder(recipe, out)
        if (out / "summary.json").exists():
            world.tell_all(kind="end")
            return None
    torch.set_num_threads(recipe.num_threads)  # mpiexec gives each rank one
    data = data_of(recipe).to(recipe.device)
    line = _compare(world, about(recipe, data))
    parts, task, clients = parts_of(recipe, data), task_of(recipe), split(data.train, recipe)
    if k >= 0:
        mine = member(recipe, parts, task, data.train, clients.shares[k], k, out / f"client{k}")
        mine.play(line)
        return None
    warn_if_inputs_cross(recipe, parts, data.train)  # rank 0 speaks for all
    side = ServerSide(
        recipe, parts, task, clients, data.train, out, release=data.release, data=data, progress=progress, post=mpi.post(world),
        quorum=recipe.num_clients, say=say,
    )  # fmt: skip
    mpi.serve(world, side.host)
    result = side.finish()
    world.tell_all(kind="end")  # not before the results lie there, because clients give up their states then
    return result


def _compare(world: mpi.World, mine: dict[str, Any]) -> mpi.RankLine:
    """Return this rank's line to rank 0 after rank 0 has compared versions, recipes and data of all ranks."""
    line = mpi.RankLine(world)
    if world.rank:
        line.greet(mine)
        return line
    said = dict[str, None]()  # in order, and each once

    def disagreement_with(greeting: Mapping[str, Any], name: str) -> str | None:
        why = disagreement(mine, greeting, name)
        said.update(dict.fromkeys(doubts(mine, greeting) if why is None else ()))
        return why

    mpi.admit(world, disagreement_with)
    for line_said in said:
        warnings.warn(Advice(line_said), stacklevel=2)
    return line


def _line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from the last marks"
    text = str(error).partition("\n")[0]
    return text if isinstance(error, BadInput | RunFailed) else f"{type(error).__name__}: {text}"


def rank() -> int:
    """Return this process's rank as mpiexec or srun tells it, 0 without them; MPI is not started for it."""
    names = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)
