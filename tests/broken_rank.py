"""Three ranks, of which the last one fails in the middle of its first round, or is killed in its second, or neither."""

import os
import signal
import sys
from pathlib import Path

from across import BASE

from cutlayer import client, cluster, figures
from cutlayer.recipes.recipe import make


def broken(self, batch, **how):
    raise ValueError("this data owner's disk is gone")


def killed(self, batch, _seen=[], _forward=client.Client.forward, **how):
    _seen.append(batch)
    if len(_seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return _forward(self, batch, **how)


if __name__ == "__main__":
    figures.draw = lambda groups, metric: []
    if cluster.rank() == 2 and sys.argv[2] != "whole":
        client.Client.forward = {"broken": broken, "killed": killed}[sys.argv[2]]
    try:
        cluster.run(make({**BASE, "scheme": "splitfed_v1", "transport": "mpi", "rounds": 3}), Path(sys.argv[1]))
    except Exception as error:
        if cluster.rank() == 0:
            print(error, file=sys.stderr)
        sys.exit(1)
