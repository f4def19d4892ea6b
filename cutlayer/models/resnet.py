"""Residual networks: the CIFAR family of depth 6n + 2, ResNet-18 with a 3x3 stem, and ResNet-50 for 224x224 images."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from .blocks import BasicBlock, Blocks, Bottleneck, chain, conv_bn_relu, global_pool, image_input

ENDS = {"shallow": "stage1.block2", "middle": "stage2.block2", "deep": "stage3.block2"}  # of ResNet-18's stages
Block = Callable[[int, int, int], nn.Module]  # input channels, width, stride


def _stages(
    stem: nn.Module,
    channels: int,
    widths: tuple[int, ...],
    depths: Sequence[int],
    block: Block,
    cuts: dict[str, str],
    num_classes: int,
) -> Blocks:
    blocks: list[tuple[str, nn.Module]] = [("stem", stem)]
    for number, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        stage: list[tuple[str, nn.Module]] = []
        for place in range(1, depth + 1):
            stage.append((f"block{place}", block(channels, width, 2 if number > 1 and place == 1 else 1)))
            channels = width
        blocks.append((f"stage{number}", chain(stage)))
    blocks += [("pool", global_pool()), ("classifier", nn.Linear(channels, num_classes))]
    return Blocks(blocks, cuts, widths)


def _resnet(
    widths: tuple[int, ...], depth: int, projected: bool, cuts: dict[str, str], num_classes: int, in_channels: int
) -> Blocks:
    stem = chain(image_input(in_channels) + conv_bn_relu(in_channels, widths[0]))
    block = partial(BasicBlock, projected=projected)
    return _stages(stem, widths[0], widths, [depth] * len(widths), block, cuts, num_classes)


def _cifar(n: int, num_classes: int, in_channels: int) -> Blocks:
    # Where ResNet-110 (n = 18) is cut after 12, 17 and 26 blocks, the others are cut after as large a share of theirs,
    # the first two rounded to the nearest and so within stage 1, the last rounded up and so always within stage 2.
    after = {"shallow": (12 * n + 8) // 18, "middle": (17 * n + 8) // 18, "deep": -(-26 * n // 18)}
    cuts = {name: f"stage{(b - 1) // n + 1}.block{(b - 1) % n + 1}" for name, b in after.items()}
    return _resnet((16, 32, 64), n, False, cuts, num_classes, in_channels)


def resnet8(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return the CIFAR ResNet with 1 block per stage, (N, C, H, W) to (N, num_classes); cuts after block 1, 1, 2."""
    return _cifar(1, num_classes, in_channels)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return the CIFAR ResNet with 3 blocks per stage, (N, C, H, W) to (N, num_classes); cuts after block 2, 3, 5."""
    return _cifar(3, num_classes, in_channels)


def resnet20_group(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return `resnet20` with a group norm (2 groups) for each batch norm, which looks at no other sample.

    For clients whose classes differ, with whose batches batch norm trains on what evaluation does not see (arXiv 1910.00189).
    """
    model = resnet20(num_classes, in_channels)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(2, child.num_features))
    return model


def resnet32(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return the CIFAR ResNet with 5 blocks per stage, (N, C, H, W) to (N, num_classes); cuts after block 3, 5, 8."""
    return _cifar(5, num_classes, in_channels)


def resnet44(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return the CIFAR ResNet with 7 blocks per stage, (N, C, H, W) to (N, num_classes); cuts after block 5, 7, 11."""
    return _cifar(7, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return the CIFAR ResNet with 9 blocks per stage, (N, C, H, W) to (N, num_classes); cuts after block 6, 8, 13."""
    return _cifar(9, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return the CIFAR ResNet with 18 blocks per stage, (N, C, H, W) to (N, num_classes); cuts after block 12, 17, 26.

    He et al. 2016, option-A shortcuts; initialised as PyTorch does by default, as in the code for arXiv 2601.19261, not
    as He et al. do.
    """
    return _cifar(18, num_classes, in_channels)


def resnet18(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return ResNet-18 with a 3x3 stem and no first pooling, (N, C, H, W) to (N, num_classes); cut at ends of stages.

    He et al. 2016, option-B shortcuts. SplitFed's code uses the ImageNet stem (7x7 of stride 2, then pooling) instead.
    """
    return _resnet((64, 128, 256, 512), 2, True, ENDS, num_classes, in_channels)


def resnet18_quarter(num_classes: int = 10, in_channels: int = 3) -> Blocks:
    """Return `resnet18` with a quarter of the channels, (N, C, H, W) to (N, num_classes), for machines without a GPU."""
    return _resnet((16, 32, 64, 128), 2, True, ENDS, num_classes, in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> Blocks:
    """Return ResNet-50 with the ImageNet stem, (N, C, H, W) to (N, num_classes); cut at ends of stages.

    He et al. 2016; a block's stride lies in its 3x3 convolution, as in torchvision.
    """
    stem = chain(
        [
            *image_input(in_channels), ("conv", nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)), ("bn", nn.BatchNorm2d(64)),
            ("relu", nn.ReLU()), ("pool", nn.MaxPool2d(3, 2, 1)),
        ]
    )  # fmt: skip
    cuts = {"shallow": "stage1.block3", "middle": "stage2.block4", "deep": "stage3.block6"}
    return _stages(stem, 64, (256, 512, 1024, 2048), (3, 4, 6, 3), Bottleneck, cuts, num_classes)
