"""The same recipes on every transport: the cases, a gRPC run with clients as threads, and what mpiexec starts.

As a program: run all cases on the ranks of one mpiexec, into the folder that is given.
"""

import sys
import threading
from pathlib import Path

from cutlayer.errors import BadInput
from cutlayer.join import join
from cutlayer.methods import METHODS
from cutlayer.recipes.options import method_class
from cutlayer.recipes.recipe import make
from cutlayer.serve import Serving

BASE = {
    "data": "digits", "model": "resnet8", "num_train": 44, "num_test": 16, "rounds": 2, "batch_size": 8, "num_threads": 1,
    "num_clients": 2, "lr": 0.05,
}  # fmt: skip
SCHEDULES = {"relay": {"schedule": "relay"}, "copies": {"schedule": "parallel", "server_copies": True}}
OPTIONS = {"auxiliary_loss": {"auxiliary": "mlp", "auxiliary_width": 8}, "loss_threshold": {"threshold": 10.0}}


GRAPHS = {"data": "mutag", "model": "gin", "cut": "middle", "optimizer": "adam", "lr": 0.01}
WORDS = {"data": "agnews", "model": "transformer", "cut": "shallow", "optimizer": "adam", "lr": 0.001}
REAL = {  # what is beside the activations crosses too: sizes and edges of graphs, masks of sentences
    "graphs": {**GRAPHS, "scheme": "splitfed_v1"},
    "graphs-pooled": {**GRAPHS, "scheme": "vanilla", "cut": "readout"},
    "graphs-tail": {**GRAPHS, "scheme": "u_shaped", "tail": "readout"},
    "graphs-decoupled": {**GRAPHS, "scheme": "dsl_fed", "auxiliary": "block"},
    "text": {**WORDS, "scheme": "splitfed_v1"},
    "text-decoupled": {**WORDS, "scheme": "dsl_fed", "auxiliary": "block"},
}


def there(data, real):
    """Return whether a folder of real data sets has this one."""
    return (Path(real) / ("tudataset" if data == "mutag" else data)).is_dir()


def cases(real=None):
    """Return every legal recipe of method x schedule x (labels shared | kept), by name, and some with codecs and options.

    With the folder of the real data sets also those of REAL.
    """
    found = {}
    for method in METHODS:
        cut = {"cut": "none"} if getattr(method_class(method), "uncut", False) else {}
        for schedule, fields in SCHEDULES.items():
            for tail in (None, "last"):
                try:
                    recipe = make({**BASE, "method": method, **OPTIONS.get(method, {}), **cut, **fields, "tail": tail})
                except BadInput:
                    continue  # legal.py says why
                found[f"{method}-{schedule}{'-tail' if tail else ''}"] = recipe
    more = {
        "carry": {"scheme": "vanilla", "hand_over": "carry", "momentum": 0.9},
        "float8": {"scheme": "splitfed_v1", "codec": "smashed=float8,cut_grad=float8"},
        "top-k": {"scheme": "splitfed_v1", "codec": "smashed=random_top_k@0.2,weights=uniform8"},
        "local-norm": {"scheme": "splitfed_v1", "batch_norm": "local", "checkpoint_every": 1},
    }
    more |= {name: {**fields, "data_dir": real} for name, fields in REAL.items() if real and there(fields["data"], real)}
    return found | {name: make({**BASE, **fields}) for name, fields in more.items()}


def joining(recipe, out, names, port, patience):
    """Start clients as threads; return the threads, and where their errors will be."""
    failed = []

    def client(name):
        try:
            join(recipe, out / name, server=f"127.0.0.1:{port}", name=name, patience=patience)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=client, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    return threads, failed


def over_grpc(recipe, out, names=(), tls=None, watch=lambda serving: None, **how):
    """Serve a recipe here, with its clients as threads; return the result and the server."""
    serving = Serving(recipe, out / "server", listen="127.0.0.1:0", names=names, watch=watch, tls=tls, **how)
    threads, failed = joining(recipe, out, serving.names, serving.gate.port, 20.0)
    try:
        result = serving.run()
    finally:
        for thread in threads:
            thread.join(30)
    assert not failed, failed
    return result, serving


def main(out, real=None):
    from cutlayer import cluster, figures

    figures.draw = lambda groups, metric: []
    for name, recipe in cases(real).items():
        cluster.run(make({**recipe.flat(), "transport": "mpi"}), out / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
