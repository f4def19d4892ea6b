"""Small runs that together use every scheme, codec family, modality and transport; data only, no code of the package.

`scripts/guard` plays them with two versions of the package, `tests/test_guard.py` with the present one. A field that an older
version does not know must not stand here.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One run: recipe fields over BASE, how its parties are joined, and the folder of real data that it reads, if any."""

    fields: dict[str, Any] = field(default_factory=dict)
    transport: str = "inprocess"
    data: str | None = None


BASE = {
    "data": "digits", "model": "resnet8", "num_train": 44, "num_test": 16, "rounds": 2, "batch_size": 8, "num_clients": 2,
    "lr": 0.05, "num_threads": 1, "diagnose_every": 0,
}  # fmt: skip
HEAD = {"auxiliary": "mlp", "auxiliary_width": 8}
GRAPHS = {"data": "mutag", "model": "gin", "cut": "middle", "optimizer": "adam", "lr": 0.01}
WORDS = {"data": "agnews", "model": "transformer", "cut": "shallow", "optimizer": "adam", "lr": 0.001}

SCHEMES = {
    "centralised": {"num_clients": 1},
    "local_only": {},
    "fedavg": {"local_epochs": 2},
    "vanilla": {"optimizer": "adam", "lr": 0.001, "hand_over": "carry"},
    "u_shaped": {},
    "splitfed_v1": {"partition": "contiguous"},
    "splitfed_v2": {},
    "splitfed_v3": {},
    "psl": {},
    "dsl": HEAD,
    "dsl_seq": {"auxiliary": "block"},
    "dsl_fed": {"auxiliary": "lite"},
    "locsplitfed": {"auxiliary": "linear"},
    "cse_fsl": {**HEAD, "send_every": 2},
    "fsl_sage": {**HEAD, "send_every": 2, "align_epochs": 2, "memory_size": 16},
    "dni": {"true_every": 2, "regressor_width": 8},
    "hosl": {},
    "heron_sfl": HEAD,
    "async_splitfed": {},
    "async_loss": {"threshold": 10.0, "rounds": 4},
}
CODECS = {
    "float16": "smashed=float16,cut_grad=bfloat16,weights=float16",
    "float8": "smashed=float8,cut_grad=float8",
    "minifloat": "smashed=minifloat,cut_grad=minifloat@5:2",
    "uniform": "smashed=uniform8,cut_grad=uniform4,weights=feedback+uniform8@nearest",
    "top-k": "smashed=top_k@0.2",
    "random-top-k": "smashed=random_top_k@0.2",
    "low-rank": "smashed=low_rank@2,cut_grad=float16",
    "noise": "smashed=gaussian_noise@0.1:1+float8",
    "merge": "smashed=batch_merge@0.5",
}
VARIANTS = {
    "bfloat16": {"scheme": "dsl", "precision": "bfloat16", "memory_format": "channels_last", **HEAD},
    "reconstruction": {"scheme": "dsl_seq", "auxiliary": "block", "reconstruction": "conv2", "backward_share": 0.5},
    "overlap": {"scheme": "dsl", "overlap": 2, "checkpoint_every": 2, **HEAD},
    "dirichlet": {"scheme": "splitfed_v1", "partition": "dirichlet", "num_train": 88},
    "clock": {"scheme": "async_splitfed", "uplink": 10.0, "downlink": 20.0, "latency": 5.0, "speeds": (1e9, 2e9)},
    "local-norm": {"scheme": "splitfed_v1", "batch_norm": "local", "clip": 1.0, "fedprox": 0.1, "drop_last": True},
    "tail-decoupled": {"scheme": "dsl_seq", "tail": "last", "warmup_rounds": 1, "lr_schedule": "cosine", **HEAD},
}
REAL = {
    "graphs": ({**GRAPHS, "scheme": "splitfed_v1"}, "tudataset"),
    "graphs-tail": ({**GRAPHS, "scheme": "u_shaped", "tail": "readout"}, "tudataset"),
    "text": ({**WORDS, "scheme": "splitfed_v2"}, "agnews"),
    "text-decoupled": ({**WORDS, "scheme": "dsl_fed", "auxiliary": "attention"}, "agnews"),
    "table": ({"scheme": "vanilla", "data": "adult", "model": "mlp", "cut": "layer1", "num_train": 200}, "adult"),
}
NETWORK = {
    "vanilla": {"scheme": "vanilla"},
    "splitfed_v1": {"scheme": "splitfed_v1", "codec": "smashed=float8,cut_grad=float8"},
    "u_shaped": {"scheme": "u_shaped"},
    "dsl_seq": {"scheme": "dsl_seq", **HEAD},
}
CASES: dict[str, Case] = {
    **{name: Case({"scheme": name, **fields}) for name, fields in SCHEMES.items()},
    **{f"codec-{name}": Case({"scheme": "splitfed_v1", "codec": codec}) for name, codec in CODECS.items()},
    **{name: Case(fields) for name, fields in VARIANTS.items()},
    **{name: Case(fields, data=data) for name, (fields, data) in REAL.items()},
    **{f"{transport}-{name}": Case(fields, transport) for transport in ("mpi", "grpc") for name, fields in NETWORK.items()},
    "own": Case(transport="python"),
    "own-drawing": Case(transport="python"),
}
