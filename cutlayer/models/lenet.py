"""A small convolutional network in the style of LeNet-5."""

from torch import nn

from ..errors import BadInput
from .blocks import Blocks, chain, image_input


def lenet(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> Blocks:
    """Return LeNet-5 for square images, (N, in_channels, image_size, image_size) to (N, num_classes).

    LeCun et al. 1998, with ReLU and max pooling in place of tanh and learned subsampling. Raises BadInput for images
    under 12 pixels a side, of which the convolutions leave nothing.
    """
    if image_size < 12:
        raise BadInput(f"lenet cannot take images of {image_size} pixels a side; 12 is the least, or use mlp")
    side = (image_size // 2 - 4) // 2
    convolutions = [
        ("conv1", image_input(in_channels), nn.Conv2d(in_channels, 6, 5, padding=2)),
        ("conv2", [], nn.Conv2d(6, 16, 5)),
    ]
    blocks: list[tuple[str, nn.Module]] = [
        (name, chain([*first, ("conv", conv), ("relu", nn.ReLU()), ("pool", nn.MaxPool2d(2))]))
        for name, first, conv in convolutions
    ]
    blocks += [
        ("flatten", nn.Flatten()),
        ("fc1", chain([("linear", nn.Linear(16 * side * side, 120)), ("relu", nn.ReLU())])),
        ("fc2", chain([("linear", nn.Linear(120, 84)), ("relu", nn.ReLU())])),
        ("classifier", nn.Linear(84, num_classes)),
    ]
    return Blocks(blocks, {"shallow": "conv1", "middle": "conv2", "deep": "fc1"})
