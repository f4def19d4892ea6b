"""The warning that the targets of a data set are its inputs, which then cross as labels."""

import warnings

import torch
from torch import Tensor

from .cut import Parts
from .data.sources import Source
from .errors import Advice
from .fit import tried_samples
from .recipes.recipe import Recipe

WARNING = "targets equal the inputs, so raw inputs cross to the server as labels; give the model a tail, then labels stay home"


def warn_if_inputs_cross(recipe: Recipe, parts: Parts, source: Source) -> None:
    """Warn with Advice if labels cross and the targets of a few samples hold the values of one of their inputs."""
    if recipe.cut == "none" or parts.tail is not None:
        return
    batch = tried_samples(source)
    if any(_same_values(given, batch.y) for given in (batch.x, *batch.inputs.values())):
        warnings.warn(WARNING, Advice, stacklevel=2)


def _same_values(x: Tensor, y: Tensor) -> bool:
    """Return whether inputs and targets of each sample hold the same values, up to shape and dtype."""
    if x.numel() != y.numel() or len(x) != len(y) or x.is_complex() or y.is_complex():
        return False
    return torch.equal(x.reshape(len(x), -1), y.reshape(len(y), -1).to(x.dtype))  # inputs are cast, and targets are not
