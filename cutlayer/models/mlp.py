"""A perceptron with hidden layers, for vectors and for small images."""

from collections.abc import Sequence

from torch import nn

from ..errors import BadInput
from .blocks import Blocks, chain


def mlp(num_classes: int = 10, in_features: int = 64, widths: Sequence[int] = (64, 64)) -> Blocks:
    """Return a perceptron, (N, ...) with in_features values a sample to (N, num_classes).

    Cuts: shallow after the first hidden layer, middle after half of them (rounded up), deep after the last. Raises
    BadInput without a hidden layer.
    """
    if not widths:
        raise BadInput("mlp needs at least one hidden layer to be cut behind; give widths such as (64, 64)")
    blocks: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    features = in_features
    for number, width in enumerate(widths, 1):
        blocks.append((f"layer{number}", chain([("linear", nn.Linear(features, width)), ("relu", nn.ReLU())])))
        features = width
    blocks.append(("classifier", nn.Linear(features, num_classes)))
    depth = len(widths)
    return Blocks(blocks, {"shallow": "layer1", "middle": f"layer{(depth + 1) // 2}", "deep": f"layer{depth}"})
