"""A recipe: all fields of a run, flat; a field, its flag and its Python argument have one name."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from ..errors import BadInput, unknown
from ..methods import METHODS
from ..named import find


def _pairs(value: Any) -> Any:
    """Accept "smashed=float8,cut_grad=float16" where a table is wanted."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair]
    if any(not mark or not codec for _, mark, codec in pairs):
        raise ValueError("write role=name,role=name")
    return {role.strip(): codec.strip() for role, _, codec in pairs}


Positive = Annotated[int, Field(ge=1)]
Pairs = Annotated[dict[str, str], pydantic.BeforeValidator(_pairs)]


@pydantic_dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Recipe:
    """Everything that decides a run but the method's own options, which are kept in `options` and flat in `flat()`."""

    scheme: str = Field("vanilla", description="known name of a whole scheme (cutlayer list schemes); any field overrides it")
    name: str = Field("", description="a name for the reader")
    data: str = Field("digits", description="data set (cutlayer list data), or package.module:object giving cl.data.Data")
    data_dir: str | None = Field(None, description="folder with the data files; else $CUTLAYER_DATA")
    num_train: Positive | None = Field(None, description="use only the first n training samples")
    num_test: Positive | None = Field(None, description="use only the first n test samples")
    augment: bool = Field(True, description="random crops and flips, where the data set has them")
    model: str = Field("resnet20", description="network (cutlayer list models), or package.module:object giving a module")
    cut: str = Field("shallow", description="block after which the network is cut: stage1.block2, block2, shallow, middle, deep")
    tail: str | None = Field(None, description="block after which the clients' tail begins (labels stay home)")
    task: str = Field("classification", description="classification, or package.module:object giving a cl.Task")
    method: str = Field("backprop", description="where the client's gradient comes from (cutlayer list methods)")
    schedule: str = Field("relay", description="who computes when (cutlayer list schedules)")
    hand_over: Literal["reset", "carry", "local", "shared"] = Field(
        "reset", description="client optimizer state when the model changes hands; shared: one model object, no traffic"
    )
    num_clients: Positive = Field(1, description="data owners")
    partition: str = Field("iid", description="how the training data lie with the clients (cutlayer list partitions)")
    alpha: Annotated[float, Field(gt=0)] = Field(0.5, description="concentration of the Dirichlet partitions")
    classes_per_client: Positive = Field(2, description="classes of each client in the pathological partition")
    rounds: Positive = Field(10, description="passes in which every client sees all its batches once")
    local_epochs: Positive = Field(1, description="passes over a client's data per turn")
    batch_size: Positive = Field(128, description="samples per mini-batch; the last one may be smaller")
    drop_last: bool = Field(False, description="leave out the last incomplete training batch")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="one per side")
    lr: Annotated[float, Field(ge=0)] = Field(0.1, description="learning rate of both sides")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of sgd")
    nesterov: bool = Field(False, description="of sgd")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="L2, of both sides")
    lr_schedule: Literal["constant", "cosine", "steps"] = Field("constant", description="by round; steps: x0.2 at 30, 60, 80 %")
    warmup_rounds: Annotated[int, Field(ge=0)] = Field(0, description="rounds of linear warm-up")
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="largest norm of each side's own gradients")
    codec: Pairs = Field(default_factory=dict, description="by role, e.g. smashed=float8,cut_grad=float8 (cutlayer list codecs)")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast on both sides")
    memory_format: Literal["contiguous", "channels_last"] = Field("contiguous", description="of images")
    num_threads: Positive = Field(2, description="threads of every party; other numbers give other bits")
    device: str = Field("cpu", description="cpu or cuda")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of weights, order, augmentation and partition, each its own stream")
    transport: Literal["inprocess"] = Field("inprocess", description="how the parties are joined")
    evaluate_every: Positive = Field(1, description="rounds between evaluations; the last five are always evaluated")
    diagnose_every: Annotated[int, Field(ge=0)] = Field(0, description="steps between looks at the gradient at the cut; 0: never")
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(0, description="steps between marks inside a round; 0: at turns only")
    tap: bool = Field(False, description="write every message as it crosses to OUT/tap")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own options")

    def method_options(self) -> Any:
        """Return the method's own frozen options."""
        kind = options_of(self.method)
        try:
            return pydantic.TypeAdapter(kind).validate_python(self.options)
        except pydantic.ValidationError as error:
            raise _bad_value(error) from None

    def flat(self) -> dict[str, Any]:
        """Return every field and every option of the method, by name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "options"}
        return fields | dataclasses.asdict(self.method_options())

    def digest(self) -> str:
        """Return the SHA-256 of the sorted recipe without where it runs and lies."""
        kept = {k: v for k, v in self.flat().items() if k not in ("data_dir", "device", "transport", "name", "scheme")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


FIELDS = tuple(f.name for f in dataclasses.fields(Recipe) if f.name != "options")


def method_class(name: str) -> Any:
    """Return a method's class, from the table or from outside."""
    found = find("method", name, METHODS)
    return getattr(found, "build", found)


def options_of(method: str) -> type:
    """Return the frozen dataclass of a method's options."""
    kind: type = method_class(method).Options
    return kind


def _bad_value(error: pydantic.ValidationError) -> BadInput:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "function-before[_pairs()") or "recipe"
    return BadInput(f"{where} = {first['input']!r}: {first['msg']}")


def make(fields: Mapping[str, Any], onto: "Recipe | None" = None) -> Recipe:
    """Return a recipe from flat fields, over the scheme they name and over another recipe's fields.

    Raises BadInput naming the field, its value and the nearest valid name.
    """
    from .schemes import SCHEMES

    base = dict(onto.flat()) if onto else {}
    changed = dict(fields)
    scheme = changed.get("scheme")
    if scheme is not None:
        if scheme not in SCHEMES:
            raise unknown("scheme", str(scheme), SCHEMES)
        changed = {**SCHEMES[scheme].fields, **changed}
    method = changed.get("method", base.get("method", "backprop"))
    own = {f.name for f in dataclasses.fields(options_of(method))}
    if onto is not None and method != onto.method:  # the other method's options have no meaning here
        base = {k: v for k, v in base.items() if k in FIELDS or k in own}
    merged = {**base, **changed}
    for name in merged:
        if name not in FIELDS and name not in own:
            raise unknown("recipe field", name, [*FIELDS, *own])
    options = {k: v for k, v in merged.items() if k not in FIELDS}
    try:
        recipe = Recipe(**{k: v for k, v in merged.items() if k in FIELDS}, options=options)
    except pydantic.ValidationError as error:
        raise _bad_value(error) from None
    recipe = dataclasses.replace(recipe, options=dataclasses.asdict(recipe.method_options()))
    from .legal import refusal

    if (why := refusal(recipe)) is not None:
        raise BadInput(why)
    return recipe


def read(path: Path) -> dict[str, Any]:
    """Return the fields of a flat TOML file; raises BadInput if it is none."""
    import tomllib

    try:
        fields = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no recipe file: {error}") from error
    return fields


def to_toml(fields: Mapping[str, Any]) -> str:
    """Return fields as flat TOML; None is left out, which is the default everywhere."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items())
            lines.append(f"{name} = {{{pairs}}}")
        elif value is not None:
            lines.append(f"{name} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"
