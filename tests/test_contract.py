"""Every pair of methods, cuts, codecs and schedules (each option too) that the tables hold; a new row joins by itself."""

import itertools
import random
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from conftest import equal, small_data, small_model

import cutlayer as cl
from cutlayer.codecs import CODECS
from cutlayer.errors import BadInput
from cutlayer.methods import METHODS
from cutlayer.recipes.legal import refusal
from cutlayer.recipes.options import method_class, options_of, schedule_class
from cutlayer.recipes.recipe import Recipe, make
from cutlayer.schedules import SCHEDULES
from cutlayer.wire import dumps, loads

pytestmark = pytest.mark.usefixtures("no_figures")

CUTS = {"stem": None, "stage1.block2": None, "pool": "hidden"}
SAMPLES = {
    "sync_every": ["2 batches", "1 epoch", "never"],
    "participation": [0.5],
}  # options whose values are not listed in their type

ALSO = {
    "fedbuff": (("buffer_size", 2),),
    "at_once": (("merge", "fedbuff"),),
    "weights": (("merge", "fedbuff"), ("buffer_size", 2)),
}


def variants(schedule):
    """Return the schedule as it is, and with every value of every option of its own, one at a time."""
    kind = schedule_class(schedule).Options
    found = [()]
    for name, hint in get_type_hints(kind).items():
        values = (
            [True, False] if hint is bool else list(get_args(hint)) if get_origin(hint) is Literal else SAMPLES.get(name, [])
        )
        default = getattr(kind(), name)
        found += [((name, value), *ALSO.get(value, ())) for value in values if value != default]
    return [(schedule, *pairs) for pairs in found]


AXES = (list(METHODS), list(CUTS), list(CODECS), [variant for schedule in SCHEDULES for variant in variants(schedule)])
PAIRS = sorted(
    {
        tuple(value if i in pair else axis[0] for i, (axis, value) in enumerate(zip(AXES, cell, strict=True)))
        for pair in itertools.combinations(range(len(AXES)), 2)
        for cell in itertools.product(*(axis if i in pair else axis[:1] for i, axis in enumerate(AXES)))
    }
    | set(random.Random(0).sample(list(itertools.product(*AXES)), 100)),
    key=repr,
)


def name_of(cell):
    method, at, codec, (schedule, *pairs) = cell
    return "-".join([method, at, codec, schedule, *(f"{name}={value}" for name, value in pairs)])


def fields_of(method, at, codec, schedule):
    """Return the fields of a cell with its codec on every role that it has, or why it is refused."""
    options = {"auxiliary": "mlp", "auxiliary_width": 8} if "auxiliary" in options_of(method).__dataclass_fields__ else {}
    uncut = getattr(method_class(method), "uncut", False)
    tail = {"tail": CUTS[at]} if CUTS[at] and not uncut else {}
    at = "none" if uncut else at
    base = {"method": method, "schedule": schedule[0], "cut": at, "num_clients": 2, **dict(schedule[1:]), **tail, **options}
    codec = {"top_k": "top_k@0.5", "random_top_k": "random_top_k@0.8"}.get(codec, codec)  # a tenth of 8 features is one
    roles = dict.fromkeys(("smashed", "cut_grad", "features", "feature_grad"), codec)
    why = ""
    for drop in ((), ("cut_grad",), ("features", "feature_grad"), ("cut_grad", "features", "feature_grad"), tuple(roles)):
        fields = {**base, "codec": {role: name for role, name in roles.items() if role not in drop}}
        try:
            return {**fields, "recipe": make(fields)}
        except BadInput as error:
            why = str(error)
    return why


@pytest.mark.parametrize("cell", PAIRS, ids=name_of)
def test_contract(cell, tmp_path):
    fields = fields_of(*cell)
    if isinstance(fields, str):
        assert any(why in fields for why in EXCLUDED), f"refused, and not in the list of what is excluded: {fields}"
        return
    recipe: Recipe = fields.pop("recipe")
    assert refusal(recipe) is None
    data, model = small_data(n=16), small_model()
    clients = cl.partition.contiguous(data.train, num_clients=2)
    parts = cl.cut(model, cell[1], CUTS[cell[1]])
    how = {**fields, "rounds": 2, "batch_size": 4, "num_threads": 1, "lr": 0.05, "tap": True}
    result = cl.run(parts, clients, out=tmp_path / "run", **how)
    first, last = (result.records[i]["train_loss"] for i in (0, -1))
    assert last < first
    # law 4: what the meter counted is what the frames on disk hold, by direction and role
    counted = {(d, role): cell["payload"] for d in ("up", "down") for role, cell in result.summary["bytes"][d].items()}
    wire = sum(cell["wire"] for d in ("up", "down") for cell in result.summary["bytes"][d].values())
    frames = sorted((tmp_path / "run" / "tap").iterdir())
    assert wire == sum(path.stat().st_size for path in frames)
    packed: dict[tuple[str, str], int] = {}
    for path in frames:
        direction = path.name.split("-")[1]
        frame = path.read_bytes()
        message = loads(frame)
        assert dumps(message) == frame
        for role, nbytes in message.payload().items():
            packed[direction, role] = packed.get((direction, role), 0) + nbytes
        # law 6: raw inputs are in no message, labels in none where there is a tail
        for role, tensor in ((c.role, t) for c in message.roles for t in c.parts):
            assert tuple(tensor.shape[1:]) != (1, 6, 6), role
            assert not (CUTS[cell[1]] and role == "labels")
    assert packed == {key: nbytes for key, nbytes in counted.items() if nbytes or key in packed}
    assert not any(equal(module, parts.bottom) for name, module in result.modules.items() if name.startswith("bottom"))
    assert not any(equal(module, parts.top) for name, module in result.modules.items() if name.startswith("top"))
    # and once more from the same seed: the same bits
    again = cl.run(parts, clients, **{**how, "tap": False})
    assert all(equal(result.modules[name], again.modules[name]) for name in result.modules)


# what a cell may be refused for
EXCLUDED = [
    "one server step on all clients' batches",
    "asks several times for one batch",
    "needs labels at the server",
    "and schedule asynchronous has none",
    "aligned heads are personal",
]  # what a cell may be refused for

REFUSED = [
    ({"method": "auxiliary_loss", "codec": {"cut_grad": "float8"}}, "no gradient returns"),
    ({"method": "backprop", "codec": {"features": "float8"}}, "only where there is a tail"),
    ({"codec": {"labels": "float8"}}, "'labels' is no role"),
    ({"codec": {"smashed": "float7"}}, "unknown codec 'float7'"),
    ({"nesterov": True, "momentum": 0.0}, "nesterov needs"),
    ({"warmup_rounds": 6, "rounds": 5}, "never ends in 5 rounds"),
    ({"method": "auxiliary_loss", "auxiliary": "blok"}, "Did you mean 'block'"),
    ({"method": "auxiliary_loss", "lambda_every": 0}, "lambda_every = 0"),
    ({"lr": "fast"}, "lr = 'fast'"),
    ({"rounds": 0}, "rounds = 0"),
    ({"lr_rate": 0.1}, "unknown recipe field 'lr_rate'. Did you mean"),
    ({"auxilary": "mlp", "method": "auxiliary_loss"}, "Did you mean 'auxiliary'"),
    ({"auxiliary": "mlp"}, "auxiliary is an option of method auxiliary_loss"),
    ({"data": "own", "num_train": 7}, "num_train, num_test, num_held_out and augment are for data sets of the table"),
    ({"learning_rate": 0.1}, "Did you mean 'lr'"),
    ({"scheme": "vanila"}, "Did you mean 'vanilla'"),
    ({"method": "backpropp"}, "Did you mean 'backprop'"),
    ({"method": "nowhere:Nothing"}, "must be package.module:object"),
    ({"hand_over": "throw"}, "hand_over = 'throw'"),
]


@pytest.mark.parametrize(("fields", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_does_not_go_together_is_refused_in_one_line(fields, why):
    with pytest.raises(BadInput) as error:
        make(fields)
    assert why in str(error.value)
    assert "\n" not in str(error.value)
