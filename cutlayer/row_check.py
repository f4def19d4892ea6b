"""Which features join or split rows, and the refusal of tensors that have none."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from . import codecs
from .data.sources import Source
from .errors import BadInput
from .evaluate import EVALUATION_BATCH
from .recipes.recipe import Recipe
from .rows import Layout


class Use(NamedTuple):
    """A feature, the tensors whose rows it needs, and the remedy."""

    feature: str
    names: tuple[str, ...]
    remedy: str


def check_rows(recipe: Recipe, layouts: Mapping[str, Layout], source: Source) -> None:
    """Raise BadInput if a feature of the recipe joins, stores, samples or splits rows of a tensor that has none.

    Training with one message a step needs no rows at the cut: there it may lie time first, and tables may cross.
    """
    labels = layouts["labels"]
    if labels.axis != 0 and not labels.ragged:
        raise BadInput(f"targets of shape {labels.many}: {labels.fault}, and samples are counted by it; give targets (N, ...)")
    for feature, names, remedy in _uses(recipe, layouts, source):
        for name in names:
            if (fault := layouts[name].fault) is not None:
                raise BadInput(f"{feature}, and for {name!r} of shape {layouts[name].many} {fault}; {remedy}")


def _uses(recipe: Recipe, layouts: Mapping[str, Layout], source: Source) -> Iterator[Use]:
    held_out = source.held_out
    if held_out is not None and len(held_out) > EVALUATION_BATCH:
        yield Use(
            f"evaluation joins the outputs of {EVALUATION_BATCH} samples each",
            ("output", "labels"),
            "give outputs (N, ...) of one size",
        )
    if recipe.cut == "none":
        return
    cut = tuple(name for name in layouts if name.partition("/")[0] in ("smashed", "context"))
    elsewhere = [name for name in (*cut, "features") if layouts[name].axis and (name != "features" or recipe.tail is not None)]
    if recipe.transport != "inprocess" and elsewhere:
        yield Use(
            f"transport = {recipe.transport!r} counts the rows that arrive",
            tuple(elsewhere),
            "move the batch to axis 0 at the cut",
        )
    if getattr(recipe.schedule_options(), "server_order", "") == "concatenated" and recipe.num_clients > 1:
        yield Use(
            "server_order = 'concatenated' joins the rows of all clients",
            (*cut, "labels"),
            "take server_order = 'batch_major', or cut elsewhere",
        )
    if recipe.options.get("backward_share", 1.0) < 1:
        given = tuple(name for name in layouts if name == "x" or name.startswith("inputs/"))
        yield Use(
            "backward_share splits each batch by rows", (*given, *cut, "labels"), "take backward_share = 1, or cut elsewhere"
        )
    if recipe.method == "fsl_sage" and recipe.options.get("align_rounds"):
        yield Use("method 'fsl_sage' keeps rows of many batches", (*cut, "labels"), "take align_rounds = 0, or cut elsewhere")
    if codecs.reducer(recipe.codec) is not None:
        yield Use("codec batch_merge merges rows", (*cut, "labels"), "take another codec, or cut elsewhere")
    for role, codec in codecs.build(recipe.codec).items():
        tensors = (
            ("features",) if role in ("features", "feature_grad") else tuple(n for n in cut if not n.startswith("context/"))
        )
        if role != "weights" and any(getattr(each, "per_sample", False) for each in getattr(codec, "codecs", [codec])):
            yield Use(
                f"codec {role} = {recipe.codec[role]!r} treats each row as a sample",
                tensors,
                "take another codec, or cut elsewhere",
            )
    if recipe.diagnose_every and recipe.transport == "inprocess":
        yield Use("diagnose_every compares samples row by row", ("smashed",), "set diagnose_every = 0")
    if recipe.method == "synthetic_gradient" and recipe.options.get("conditioned"):
        yield Use("the regressor reads activations and labels row by row", ("smashed",), "set conditioned = false")
