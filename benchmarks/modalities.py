"""Other modalities: phrases (SST-2), news (AG News), the next character (Shakespeare), a table (Adult); two clients, one process.

The small transformer cut after its first block, the perceptron after its first layer; six schemes beside the uncut network:
results/modalities.jsonl. SST-2: the first 10,000 phrases.
"""

from typing import Any

from cells import Cell, parser, run

from cutlayer.recipes.schemes import SCHEMES

HEAD = {"auxiliary": "block"}
HEADS: dict[str, dict[str, Any]] = {
    "centralised": {},
    "fedavg": {},
    "vanilla": {},
    "u_shaped": {},
    "splitfed_v1": {},
    "splitfed_v2": {},
    "dsl_seq": HEAD,
    "dsl_fed": HEAD,
}
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "adult": ("text", {"data": "adult", "model": "mlp", "cut": "shallow", "rounds": 10, "lr": 1e-3, "batch_size": 128}),
    "agnews": ("text", {"rounds": 4, "lr": 1e-3}),
    "sst2": ("text", {"data": "sst2", "num_train": 10_000, "rounds": 4, "lr": 1e-3}),
    "shakespeare": ("characters", {"rounds": 2}),
}
TINY = {"model": "mlp", "cut": "shallow"}
FEW = (("adult", "vanilla"), ("adult", "dsl_seq"))


def fields_of(fields: dict[str, Any], scheme: str, own: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a cell."""
    return {"num_clients": 2, **fields, **SCHEMES[scheme].fields, "scheme": scheme, **own}


def cells() -> list[Cell]:
    """Return all cells, the table first."""
    found = [
        Cell({"data": data, "what": scheme}, base, fields_of(fields, scheme, own), (data, scheme) in FEW)
        for data, (base, fields) in SETS.items()
        for scheme, own in HEADS.items()
    ]
    for data, (base, fields) in SETS.items():
        for scheme in ("dsl_seq", "dsl_fed") if data != "adult" else ():
            own = fields_of(fields, scheme, {"auxiliary": "attention"})
            found.append(Cell({"data": data, "what": f"{scheme}, attention"}, base, own))
    return found


if __name__ == "__main__":
    run("modalities", cells(), parser("modalities", __doc__).parse_args(), "Other modalities", TINY)
