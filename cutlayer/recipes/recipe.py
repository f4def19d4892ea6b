"""A recipe: all fields of a run, flat; a field, its flag and its Python argument have one name."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from ..data.partition import PARTITION_VERSION
from ..errors import BadInput, unknown
from ..printable import check_text
from .options import defaults, names_of, options_of, owners, schedule_class


def _pairs(value: Any) -> Any:
    """Accept "smashed=float8,cut_grad=float16" where a table is wanted."""
    if not isinstance(value, str):
        return value
    if value == "none":
        return {}
    pairs = [pair.partition("=") for pair in value.split(",") if pair]
    if any(not mark or not codec for _, mark, codec in pairs):
        raise ValueError("write role=name,role=name")
    roles = [role.strip() for role, _, _ in pairs]
    if len(set(roles)) < len(roles):
        raise ValueError("a role has two; write role=first+second for a chain")
    return {role.strip(): codec.strip() for role, _, codec in pairs}


def _list(value: Any) -> Any:
    """Accept "1e9,2e9" and a single number where a list of numbers is wanted."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part]
    return [value] if isinstance(value, int | float) else value


def _number(value: Any) -> Any:
    """Refuse true and false where a number is wanted, which Python counts as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("write a number")
    return value


Positive = Annotated[int, pydantic.BeforeValidator(_number), Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(ge=0, le=1e38)]  # what float32 holds
Threads = Annotated[Positive, Field(le=1024)]  # more than a processor has; each takes memory of its own
Above = Annotated[float, Field(gt=0)]
Pairs = Annotated[dict[str, str], pydantic.BeforeValidator(_pairs)]


@pydantic_dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class Recipe:
    """Everything that decides a run but the method's and the schedule's own options, which are kept in `options` and flat in `flat()`."""

    scheme: Annotated[
        str,
        "known name of a whole scheme (cutlayer list schemes); any field overrides it; custom: no known one has these fields",
    ] = "vanilla"
    name: Annotated[str, "a name for the reader"] = ""
    data: Annotated[str, "data set (cutlayer list data), or package.module:object giving cl.data.Data"] = "digits"
    data_dir: Annotated[str | None, "folder with the data files; else $CUTLAYER_DATA"] = None
    num_train: Annotated[Positive | None, "use only the first n training samples"] = None
    num_test: Annotated[Positive | None, "use only the first n test samples"] = None
    num_held_out: Annotated[
        Positive | None, "evaluate on so many training samples, held out of training, and leave the test set alone"
    ] = None
    augment: Annotated[bool, "random crops and flips, where the data set has them"] = True
    model: Annotated[str, "network (cutlayer list models), or package.module:object giving a module"] = "resnet20"
    cut: Annotated[str, "block after which the network is cut: stage1.block2, block2, shallow, middle, deep; none: uncut"] = (
        "shallow"
    )
    tail: Annotated[str | None, "block after which the clients' tail begins (labels stay home); last: it is the last block"] = (
        None
    )
    task: Annotated[str, "classification, or package.module:object giving a cl.Task"] = "classification"
    method: Annotated[str, "where the client's gradient comes from (cutlayer list methods)"] = "backprop"
    schedule: Annotated[str, "who computes when (cutlayer list schedules)"] = "relay"
    num_clients: Annotated[Positive, "data owners"] = 1
    partition: Annotated[str, "how the training data lie with the clients (cutlayer list partitions)"] = "iid"
    alpha: Annotated[Annotated[float, Field(gt=0)], "concentration of the Dirichlet partitions"] = 0.5
    partition_version: Annotated[
        Annotated[int, pydantic.BeforeValidator(_number), Field(ge=1, le=PARTITION_VERSION)],
        "version of the Dirichlet partition; 1 repeats results from before 2, and its last client lacks few classes",
    ] = PARTITION_VERSION
    classes_per_client: Annotated[Positive, "classes of each client in the pathological partition"] = 2
    rounds: Annotated[Positive, "each a turn of every client (of those drawn) over its data"] = 10
    local_epochs: Annotated[Positive, "passes over a client's data per turn"] = 1
    batch_size: Annotated[Positive, "samples per mini-batch; the last one may be smaller"] = 128
    drop_last: Annotated[bool, "leave out the last incomplete training batch"] = False
    optimizer: Annotated[Literal["sgd", "adam"], "one per side"] = "sgd"
    lr: Annotated[Rate, "learning rate of both sides"] = 0.1
    client_lr: Annotated[Rate | None, "learning rate of the clients, if it is not the server's"] = None
    momentum: Annotated[Annotated[float, Field(ge=0, lt=1)], "of sgd"] = 0.9
    nesterov: Annotated[bool, "of sgd"] = False
    weight_decay: Annotated[Rate, "L2, of both sides"] = 0.0
    lr_schedule: Annotated[Literal["constant", "cosine", "steps"], "by round; steps: x0.2 at 30, 60, 80 %"] = "constant"
    warmup_rounds: Annotated[Count, "rounds of linear warm-up"] = 0
    clip: Annotated[
        Annotated[float, Field(gt=0)] | None,
        "largest norm of the gradients of each module group: bottom and tail, each head beside them, top",
    ] = None
    fedprox: Annotated[Rate, "pull of clients and server copies to the weights they last received (FedProx); 0: none"] = 0.0
    codec: Annotated[Pairs, "by role, e.g. smashed=float8,cut_grad=float8 (cutlayer list codecs)"] = dataclasses.field(
        default_factory=dict
    )
    precision: Annotated[Literal["float32", "bfloat16"], "bfloat16: autocast on both sides"] = "float32"
    memory_format: Annotated[Literal["contiguous", "channels_last"], "of images"] = "contiguous"
    num_threads: Annotated[Threads, "threads of every party; other numbers give other bits"] = 2
    device: Annotated[str, "cpu or cuda"] = "cpu"
    seed: Annotated[Annotated[int, Field(ge=0)], "of weights, order, augmentation and partition, each its own stream"] = 0
    transport: Annotated[
        Literal["inprocess", "mpi", "grpc"],
        "how the parties are joined; mpi: by mpiexec -n 1+N cutlayer run ...; grpc: what serve and join take by themselves",
    ] = "inprocess"
    overlap: Annotated[
        Annotated[int, pydantic.BeforeValidator(_number), Field(ge=0, lt=2**31)],
        "messages that the server may be behind, in a thread of its own, where nothing comes back; 0: none",
    ] = 0
    uplink: Annotated[Above | None, "Mbit/s from each client; with any of these five, seconds are simulated"] = None
    downlink: Annotated[Above | None, "Mbit/s to each client"] = None
    latency: Annotated[Annotated[float, Field(ge=0)], "ms each way"] = 0.0
    speeds: Annotated[
        Annotated[tuple[Above, ...], pydantic.BeforeValidator(_list)],
        "multiply-adds per second of each client, or one for all: 1e9,2e9",
    ] = ()
    server_speed: Annotated[Above | None, "multiply-adds per second of the server"] = None
    evaluate_every: Annotated[Positive, "rounds between evaluations; the last five are always evaluated"] = 1
    compress_eval: Annotated[bool, "evaluation sees activations as the codec leaves them"] = False
    diagnose_every: Annotated[Count, "steps between looks at the gradient at the cut; 0: never"] = 0
    checkpoint_every: Annotated[Count, "steps between marks inside a round; 0: at turns only"] = 0
    tap: Annotated[bool, "write every message as it crosses to OUT/tap"] = False
    options: Annotated[dict[str, Any], "of the method and of the schedule"] = dataclasses.field(default_factory=dict)

    def simulated(self) -> dict[str, Any]:
        """Return the parameters of the virtual clock; empty if there is none."""
        found = {name: getattr(self, name) for name in ("uplink", "downlink", "latency", "speeds", "server_speed")}
        return found if any(found.values()) else {}

    def method_options(self) -> Any:
        """Return the method's own frozen options."""
        return self._own(options_of(self.method))

    def schedule_options(self) -> Any:
        """Return the schedule's own frozen options."""
        return self._own(schedule_class(self.schedule).Options)

    def _own(self, kind: type) -> Any:
        names = names_of(kind)
        try:
            own: Any = pydantic.TypeAdapter(kind).validate_python({k: v for k, v in self.options.items() if k in names})
        except pydantic.ValidationError as error:
            raise _bad_value(error) from None
        for name, value in dataclasses.asdict(own).items():
            infinite = isinstance(value, float) and math.isinf(value) and name in getattr(kind, "may_be_infinite", ())
            if isinstance(value, float) and not math.isfinite(value) and not infinite:
                raise BadInput(f"{name} = {value}: must be a finite number")
        return own

    def flat(self) -> dict[str, Any]:
        """Return every field and every option of the method and the schedule, by name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "options"}
        return fields | dataclasses.asdict(self.method_options()) | dataclasses.asdict(self.schedule_options())

    def digest(self) -> str:
        """Return the SHA-256 of the sorted recipe, without fields at their default and without where it runs and lies.

        So a new field leaves the digests of earlier recipes as they are.
        """
        default = defaults(Recipe) | defaults(options_of(self.method)) | defaults(schedule_class(self.schedule).Options)
        kept = {k: v for k, v in self.flat().items() if k not in OUTSIDE and k != "scheme" and (k, v) not in default.items()}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


OUTSIDE = {  # what the digest leaves out, beside the scheme, whose fields are in it
    "data_dir": "where data lie", "device": "where it is computed", "transport": "how the parties are joined",
    "name": "what it is called",
}  # fmt: skip
OTHER_WORDS = {  # what other programs call a field
    "learning_rate": "lr", "epochs": "rounds", "clients": "num_clients", "dataset": "data", "lambda": "lambda_weight",
    "split": "cut", "head": "auxiliary",
}  # fmt: skip
CUSTOM = "custom"  # the scheme of a recipe that has all fields of no known one
FIELDS = tuple(f.name for f in dataclasses.fields(Recipe) if f.name != "options")


def with_scheme(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields over those of the scheme they name, without its options for a method or schedule that they replace."""
    from .schemes import SCHEMES

    name = fields.get("scheme")
    if name in (None, CUSTOM):
        return dict(fields)
    if not isinstance(name, str) or name not in SCHEMES:
        raise unknown("scheme", str(name), SCHEMES)
    base = SCHEMES[name].fields
    return {**{k: v for k, v in base.items() if k not in replaced(base, fields)}, **fields}


def choice(fields: Mapping[str, Any]) -> dict[str, type]:
    """Return the options of the method and of the schedule that some fields name, by "method" and "schedule"."""
    method, schedule = ((fields.get(kind, getattr(Recipe, kind))) for kind in ("method", "schedule"))
    return {"method": options_of(method), "schedule": schedule_class(schedule).Options}


def options_for(fields: Mapping[str, Any]) -> set[str]:
    """Return the names of the options that the method and the schedule of some fields have."""
    return set().union(*map(names_of, choice(fields).values()))


def replaced(base: Mapping[str, Any], changes: Mapping[str, Any]) -> set[str]:
    """Return the names of the options that lose their meaning because `changes` name another method or schedule."""
    before = choice(base)
    return set().union(
        *(names_of(before[kind]) for kind in before if kind in changes and choice(changes)[kind] != before[kind])
    )


def _bad_value(error: pydantic.ValidationError) -> BadInput:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "function-before[_pairs()") or "recipe"
    return BadInput(f"{where} = {first['input']!r}: {first['msg']}")


def make(fields: Mapping[str, Any]) -> Recipe:
    """Return a recipe from flat fields, over the scheme they name.

    Raises BadInput naming the field, its value and the nearest valid name.
    """
    check_text(fields)
    merged = with_scheme(fields)
    own = options_for(merged)
    for name in merged:
        if name not in FIELDS and name not in own:
            having = [owner for owner, kind in owners().items() if name in names_of(kind)]
            if having:
                mine = (
                    f"method = {merged.get('method', Recipe.method)!r}, schedule = {merged.get('schedule', Recipe.schedule)!r}"
                )
                raise BadInput(f"{name} is an option of {' and '.join(having)}; this recipe has {mine}")
            if name in OTHER_WORDS:
                raise BadInput(f"unknown recipe field {name!r}. Did you mean {OTHER_WORDS[name]!r}?")
            raise unknown("recipe field", name, [*FIELDS, *own])
    options = {k: v for k, v in merged.items() if k not in FIELDS}
    try:
        recipe = Recipe(**{k: v for k, v in merged.items() if k in FIELDS}, options=options)
    except pydantic.ValidationError as error:
        raise _bad_value(error) from None
    whole = dataclasses.asdict(recipe.method_options()) | dataclasses.asdict(recipe.schedule_options())
    recipe = dataclasses.replace(recipe, options=whole)
    recipe = dataclasses.replace(recipe, scheme=scheme_of(recipe))
    from .legal import refusal

    if (why := refusal(recipe)) is not None:
        raise BadInput(why)
    return recipe


def scheme_of(recipe: Recipe) -> str:
    """Return the scheme whose fields a recipe all has, the named one first; `custom` if there is none.

    A scheme with a tail fixes that there is one, not where it begins.
    """
    from .schemes import SCHEMES

    flat = recipe.flat()

    def matches(fields: Mapping[str, Any]) -> bool:
        tails = "tail" not in fields or (fields["tail"] is None) == (flat["tail"] is None)
        return tails and all(flat.get(name) == value for name, value in fields.items() if name != "tail")

    names = [name for name, row in SCHEMES.items() if matches(row.fields)]
    return recipe.scheme if recipe.scheme in names else (names or [CUSTOM])[0]
