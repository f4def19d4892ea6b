"""VGG11 and VGG13 with batch norm for 32x32 images; a convolution and the pooling after it are one block."""

from torch import nn

from .blocks import Blocks, chain, global_pool, image_input


def _vgg(layout: str, cuts: dict[str, str], num_classes: int, in_channels: int) -> Blocks:
    blocks: list[tuple[str, nn.Module]] = []
    channels = in_channels
    for number, item in enumerate(layout.split(), 1):
        width = int(item.removesuffix("M"))
        layers: list[tuple[str, nn.Module]] = image_input(in_channels) if number == 1 else []
        layers.append(("conv", nn.Conv2d(channels, width, 3, padding=1)))
        layers += [("bn", nn.BatchNorm2d(width)), ("relu", nn.ReLU())]
        if item.endswith("M"):
            # Rounding up changes nothing at 32x32 and lets images of 28x28 through five halvings.
            layers.append(("pool", nn.MaxPool2d(2, ceil_mode=True)))
        blocks.append((f"conv{number}", chain(layers)))
        channels = width
    # At 32x32 the map is 1x1 here, and the mean over positions is the plain flattening of the original.
    blocks += [("flatten", global_pool()), ("classifier", nn.Linear(channels, num_classes))]
    return Blocks(blocks, cuts)


def vgg11(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return VGG11 with batch norm and one linear classifier, (N, C, H, W) to (N, num_classes).

    Simonyan and Zisserman 2015, as customary for CIFAR-10. Cuts at the shares of ResNet-110's: after conv 2, 3, 4.
    """
    cuts = {"shallow": "conv2", "middle": "conv3", "deep": "conv4"}
    return _vgg("64M 128M 256 256M 512 512M 512 512M", cuts, num_classes, in_channels)


def vgg13(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return VGG13 with batch norm and one linear classifier, (N, C, H, W) to (N, num_classes).

    Simonyan and Zisserman 2015, as customary for CIFAR-10. Cuts at the shares of ResNet-110's: after conv 2, 3, 5.
    """
    cuts = {"shallow": "conv2", "middle": "conv3", "deep": "conv5"}
    return _vgg("64 64M 128 128M 256 256M 512 512M 512 512M", cuts, num_classes, in_channels)
