"""Three ranks, of which the last one fails in the middle of its first round."""

import sys
from pathlib import Path

from across import BASE

from cutlayer import client, cluster
from cutlayer.recipes.recipe import make


def broken(self, batch, **how):
    raise ValueError("this data owner's disk is gone")


if __name__ == "__main__":
    if cluster.rank() == 2:
        client.Client.forward = broken
    try:
        cluster.run(make({**BASE, "scheme": "splitfed_v1", "transport": "mpi", "rounds": 50}), Path(sys.argv[1]))
    except Exception as error:
        if cluster.rank() == 0:
            print(error, file=sys.stderr)
        sys.exit(1)
