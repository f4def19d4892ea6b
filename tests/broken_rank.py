"""Three ranks, of which the last one fails in its first round, or beside one that has much to send, or is killed in its second, or none.

Or it sends infinity (infinite), or the learning rate makes training diverge (diverging).
"""

import os
import signal
import sys
import time
from pathlib import Path

from across import BASE

from cutlayer import client, cluster, figures, server
from cutlayer.recipes.recipe import make
from cutlayer.transports import mpi


def broken(self, batch, **how):
    raise ValueError("this data owner's disk is gone")


def killed(self, batch, **how):
    os.kill(os.getpid(), signal.SIGKILL)


def at_the_fifth(last):
    def forward(self, batch, _seen=[], _forward=client.Client.forward, **how):
        _seen.append(batch)
        return (last if len(_seen) == 5 else _forward)(self, batch, **how)

    return forward


def infinite(self, batch, _forward=client.Client.forward, **how):
    z = _forward(self, batch, **how)
    return z._replace(main=z.main * float("inf"))


def slow(self, message, _handle=server.Server.handle):
    time.sleep(0.3)
    return _handle(self, message)


if __name__ == "__main__":
    figures.draw = lambda groups, metric: []
    how, fields = sys.argv[2], {"scheme": "splitfed_v1", "transport": "mpi", "rounds": 3}
    if how == "behind":  # clients that wait for nobody, ahead of a server that takes its time
        fields |= {"scheme": "locsplitfed", "auxiliary": "linear", "local_epochs": 8}
        mpi.MAX_UNSENT = 1 << 16
        server.Server.handle = slow
    if how == "diverging":
        fields["lr"] = 1e30
    elif cluster.rank() == 2 and how != "whole":
        failures = {"broken": broken, "behind": at_the_fifth(broken), "killed": at_the_fifth(killed), "infinite": infinite}
        client.Client.forward = failures[how]
    try:
        cluster.run(make({**BASE, **fields}), Path(sys.argv[1]))
    except Exception as error:
        if cluster.rank() == 0:
            print(error, file=sys.stderr)
        sys.exit(1)
