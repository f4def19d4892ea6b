"""Models as rows of named blocks, and the networks that are built at the cut; one table of each."""

import math
import re
from collections.abc import Callable

from torch import nn

from ..errors import BadInput, unknown
from .blocks import Blocks, Entry, builder, check_shape
from .decoders import DECODERS, build_decoder
from .gin import gin
from .heads import HEADS, build_head
from .lenet import lenet
from .mlp import mlp
from .resnet import (
    resnet8,
    resnet18,
    resnet18_quarter,
    resnet20,
    resnet20_group,
    resnet32,
    resnet44,
    resnet50,
    resnet56,
    resnet110,
)
from .transformer import Transformer
from .vgg import vgg11, vgg13

__all__ = [
    "DECODERS",
    "HEADS",
    "MODELS",
    "Blocks",
    "Entry",
    "build_decoder",
    "build_head",
    "build_model",
    "gin",
    "later_stages",
    "lenet",
    "mlp",
    "resnet8",
    "resnet18",
    "resnet18_quarter",
    "resnet20",
    "resnet20_group",
    "resnet32",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
    "vgg11",
    "vgg13",
]


def _sides(name: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise BadInput(f"{name} takes images (channels, height, width), not inputs of shape {input_shape}; use mlp")
    return input_shape[0], input_shape[1], input_shape[2]


def _for_images(model: Callable[[int, int], nn.Module]) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
        return model(num_classes, _sides(model.__name__, input_shape)[0])

    return build


def _lenet(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    channels, height, width = _sides("lenet", input_shape)
    if height != width:
        raise BadInput(f"lenet takes square images, not {height}x{width}; crop or pad them, or use mlp")
    return lenet(num_classes, channels, height)


def _mlp(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return mlp(num_classes, math.prod(input_shape))


def _gin(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    if len(input_shape) != 1:
        raise BadInput(
            f"gin takes graphs whose nodes have features (d,), not inputs of shape {input_shape}; use a graph data set"
        )
    return gin(num_classes, input_shape[0])


def _transformer(causal: bool) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> nn.Module:
        return Transformer(vocabulary, num_classes, input_shape[0], causal=causal)

    return build


def _bert(*, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> nn.Module:
    from .adapters import tiny_bert

    return tiny_bert(vocabulary, num_classes, input_shape[0])


OF_TOKENS = ("transformer", "char_transformer", "bert")
MODELS: dict[str, Entry] = {
    "resnet8": Entry(_for_images(resnet8), "CIFAR ResNet, 3 x 1 blocks"),
    "resnet20": Entry(_for_images(resnet20), "CIFAR ResNet, 3 x 3 blocks"),
    "resnet20_group": Entry(_for_images(resnet20_group), "the same with group norm, for clients whose classes differ"),
    "resnet32": Entry(_for_images(resnet32), "CIFAR ResNet, 3 x 5 blocks"),
    "resnet44": Entry(_for_images(resnet44), "CIFAR ResNet, 3 x 7 blocks"),
    "resnet56": Entry(_for_images(resnet56), "CIFAR ResNet, 3 x 9 blocks"),
    "resnet110": Entry(_for_images(resnet110), "CIFAR ResNet, 3 x 18 blocks, the model of decoupled split learning"),
    "resnet18": Entry(_for_images(resnet18), "ResNet-18 with a 3x3 stem, 4 x 2 blocks"),
    "resnet18_quarter": Entry(
        _for_images(resnet18_quarter), "the same with a quarter of the channels, for machines without a GPU"
    ),
    "resnet50": Entry(_for_images(resnet50), "ResNet-50 for images of 224x224, 16 bottleneck blocks"),
    "vgg11": Entry(_for_images(vgg11), "VGG11 with batch norm, 8 convolutions"),
    "vgg13": Entry(_for_images(vgg13), "VGG13 with batch norm, 10 convolutions"),
    "lenet": Entry(_lenet, "LeNet-5 with ReLU and max pooling, 2 convolutions"),
    "gin": Entry(_gin, "graph isomorphism network, 4 convolutions of 64; cuts conv1 ... conv4, readout"),
    "transformer": Entry(_transformer(False), "text classifier: 4 blocks of width 64; cuts embedding, block1 ... block4"),
    "char_transformer": Entry(_transformer(True), "the same, causal, for the next token at every position"),
    "bert": Entry(_bert, "a small BERT from its config (pip install 'cutlayer[text]'); cuts embeddings, layer1 ... layer4"),
    "mlp": Entry(_mlp, "perceptron, 2 hidden layers of 64"),
}


def build_model(name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int = 0) -> nn.Module:
    """Return the named model for inputs (N, *input_shape), tokens if there is a vocabulary, giving logits (N, num_classes).

    Raises BadInput for an unknown name, with the legal ones, and for inputs that the model cannot take.
    """
    build = builder("model", name, MODELS)
    check_shape(input_shape, "input_shape", "give the shape of one sample without the batch axis")
    if name in MODELS and (name in OF_TOKENS) != bool(vocabulary):
        given = f"tokens below {vocabulary}" if vocabulary else f"inputs of shape {input_shape}"
        raise BadInput(f"model {name!r} cannot take {given}; tokens are for {', '.join(OF_TOKENS)}, and these for nothing else")
    return build(num_classes=num_classes, input_shape=input_shape, **({"vocabulary": vocabulary} if vocabulary else {}))


def later_stages(model: nn.Module, at: str) -> tuple[int, ...]:
    """Return the widths of the stages that lie wholly behind block path `at`, and () for a model without stages.

    ResNet-20 has (32, 64) behind "stage1.block2" and (64,) behind "stage2.block3". Raises BadInput if the model has
    stages and no block of that path.
    """
    widths = getattr(model, "widths", ())
    if not isinstance(widths, tuple) or not widths:
        return ()
    names = [name for name, _ in model.named_children()]
    if not at or at not in dict(model.named_modules()):
        raise unknown("block", at, names)
    behind = names[names.index(at.split(".")[0]) + 1 :]
    return tuple(widths[int(found[1]) - 1] for name in behind if (found := re.fullmatch(r"stage(\d+)", name)))
