"""The models: what they hold, where they are cut, what they refuse."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cutlayer import models
from cutlayer.models import MODELS, OF_TOKENS, Blocks, build_model, later_stages

torch.set_num_threads(1)

Row = tuple[str, tuple[int, ...], int]
MIB = 2**20

RESNET110: list[tuple[int, str, tuple[int, ...], int, int]] = [
    (12, "stage1.block12", (16, 32, 32), 56_528, 825),
    (17, "stage1.block17", (16, 32, 32), 79_888, 1_155),
    (18, "stage1.block18", (16, 32, 32), 84_560, 1_221),
    (26, "stage2.block8", (32, 16, 16), 228_432, 2_261),
    (36, "stage2.block18", (32, 16, 16), 414_032, 3_561),
    (54, "stage3.block18", (64, 8, 8), 1_727_312, 8_205),
]
VGG11: list[Row] = [
    ("conv1", (64, 16, 16), 1_920), ("conv2", (128, 8, 8), 76_032), ("conv3", (256, 8, 8), 371_712),
    ("conv4", (256, 4, 4), 962_304), ("conv5", (512, 4, 4), 2_143_488), ("conv6", (512, 2, 2), 4_504_320),
]  # fmt: skip
VGG13: list[Row] = [
    ("conv1", (64, 32, 32), 1_920), ("conv2", (64, 16, 16), 38_976), ("conv3", (128, 16, 16), 113_088),
    ("conv4", (128, 8, 8), 260_928), ("conv5", (256, 8, 8), 556_608), ("conv6", (256, 4, 4), 1_147_200),
]  # fmt: skip
RESNET18: list[Row] = [
    ("stem", (64, 32, 32), 1_856), ("stage1.block2", (64, 32, 32), 149_824), ("stage2.block2", (128, 16, 16), 675_392),
    ("stage3.block2", (256, 8, 8), 2_775_104), ("stage4.block2", (512, 4, 4), 11_168_832),
]  # fmt: skip


def bottom_of(model: nn.Sequential, path: str) -> nn.Sequential:
    """Everything up to and with the block of that path, under the names of the uncut model."""
    first, _, rest = path.partition(".")
    bottom = nn.Sequential()
    for name, child in model.named_children():
        if name == first and rest:
            assert isinstance(child, nn.Sequential)
            child = bottom_of(child, rest)
        bottom.add_module(name, child)
        if name == first:
            return bottom
    raise AssertionError(path)


def on_meta(name: str, num_classes: int = 10, input_shape: tuple[int, ...] = (3, 32, 32)) -> Blocks:
    with torch.device("meta"):
        model = build_model(name, num_classes, input_shape)
    assert isinstance(model, Blocks)
    return model


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shape_at(model: nn.Module, input_shape: tuple[int, ...] = (3, 32, 32)) -> tuple[int, ...]:
    return tuple(model(torch.empty(2, *input_shape, device="meta")).shape[1:])


def test_T15_1_parameter_counts() -> None:
    counts = {"resnet110": 1_727_962, "vgg11": 9_231_114, "vgg13": 9_416_010, "resnet18": 11_173_962}
    assert {name: parameters(on_meta(name)) for name in counts} == counts
    assert parameters(on_meta("resnet50", 1000, (3, 224, 224))) == 25_557_032  # torchvision's
    assert shape_at(bottom_of(on_meta("resnet50"), "stage2.block4"), (3, 224, 224)) == (512, 28, 28)


@pytest.mark.parametrize(("number", "path", "shape", "params", "buffers"), RESNET110)
def test_T15_1_resnet110_at_each_cut(number: int, path: str, shape: tuple[int, ...], params: int, buffers: int) -> None:
    model = on_meta("resnet110")
    bottom = bottom_of(model, path)
    assert sum(isinstance(m, models.blocks.BasicBlock) for m in bottom.modules()) == number
    assert parameters(bottom) == params
    assert sum(b.numel() for b in bottom.buffers()) == buffers
    assert shape_at(bottom) == shape
    assert 128 * 4 * torch.Size(shape).numel() == {16: 8, 32: 4, 64: 2}[shape[0]] * MIB
    assert set(bottom.state_dict()) <= set(model.state_dict())


@pytest.mark.parametrize(("name", "rows"), [("vgg11", VGG11), ("vgg13", VGG13), ("resnet18", RESNET18)])
def test_T15_1_vgg_and_resnet18_at_each_cut(name: str, rows: list[Row]) -> None:
    model = on_meta(name)
    for path, shape, params in rows:
        bottom = bottom_of(model, path)
        assert (path, shape_at(bottom), parameters(bottom)) == (path, shape, params)
        assert set(bottom.state_dict()) <= set(model.state_dict())


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("resnet8", (1, 1, 2)), ("resnet20", (2, 3, 5)), ("resnet32", (3, 5, 8)), ("resnet44", (5, 7, 11)),
        ("resnet56", (6, 8, 13)), ("resnet110", (12, 17, 26)),
    ],
)  # fmt: skip
def test_cifar_resnets_are_cut_at_equal_shares(name: str, after: tuple[int, ...]) -> None:
    model = on_meta(name)
    bottoms = [bottom_of(model, model.cuts[cut]) for cut in ("shallow", "middle", "deep")]
    assert tuple(sum(isinstance(m, models.blocks.BasicBlock) for m in b.modules()) for b in bottoms) == after
    assert [shape_at(b) for b in bottoms] == [(16, 32, 32), (16, 32, 32), (32, 16, 16)]


OTHERS = ("gin", *OF_TOKENS)  # test_graphs.py, test_text.py


@pytest.mark.parametrize("name", [name for name in MODELS if name not in OTHERS])
@pytest.mark.parametrize("input_shape", [(1, 28, 28), (3, 32, 32)])
def test_every_model_takes_both_image_shapes_and_names_existing_cuts(name: str, input_shape: tuple[int, ...]) -> None:
    model = on_meta(name, 7, input_shape)
    assert shape_at(model, input_shape) == (7,)
    assert list(model.cuts) == ["shallow", "middle", "deep"]
    for path in model.cuts.values():
        assert parameters(bottom_of(model, path)) > 0
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_group_norm_looks_at_no_other_sample() -> None:
    model = build_model("resnet20_group", 10, (3, 32, 32)).train()
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    assert not any("running" in name for name in model.state_dict())


# The others differ from these in depth alone.
@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18", "resnet18_quarter", "resnet50", "vgg11", "lenet", "mlp"])
def test_T15_2_parts_of_a_sequence_compose_to_the_uncut_model(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10, (3, 32, 32)).eval()
    assert isinstance(model, Blocks)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        whole = model(x)
        for number in range(1, len(model)):
            assert torch.equal(model[number:](model[:number](x)), whole)


def test_sliced_parts_share_tensors_and_their_names() -> None:
    model = models.resnet8()
    top = model[2:]
    assert all(model.get_parameter(name) is p for name, p in top.named_parameters())


@pytest.mark.parametrize("build", [models.resnet8, models.vgg11, lambda: models.lenet(in_channels=3, image_size=32)])
def test_colour_models_take_grey_images(build: Callable[[], Blocks]) -> None:
    model = build().eval()
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))


def test_option_a_shortcut_subsamples_and_pads_on_both_sides() -> None:
    x = torch.rand(2, 16, 8, 8)
    y = models.blocks.PaddedSubsample(16, 32, 2)(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_later_stages_lie_wholly_behind_the_cut() -> None:
    model = on_meta("resnet20")
    expected = {
        "stem": (16, 32, 64), "stem.conv": (16, 32, 64), "stage1.block2": (32, 64), "stage1": (32, 64),
        "stage2.block2": (64,), "stage3.block1": (), "pool": (), "classifier": (),
    }  # fmt: skip
    assert {at: later_stages(model, at) for at in expected} == expected
    assert later_stages(on_meta("resnet18"), "stage2.block1") == (256, 512)
    assert later_stages(on_meta("vgg11"), "conv2") == ()
    assert later_stages(nn.Linear(2, 2), "anything") == ()
    with pytest.raises(ValueError, match=r"unknown block 'stage9'.*Legal: .*stage1"):
        later_stages(model, "stage9")


def test_unknown_model_is_refused_with_the_legal_names() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet_20'. Did you mean 'resnet20'") as refused:
        build_model("resnet_20", 10, (3, 32, 32))
    assert all(name in str(refused.value) for name in MODELS)


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [("resnet20", (64,)), ("lenet", (1, 28, 30)), ("lenet", (1, 8, 8)), ("mlp", ()), ("mlp", (0, 3))],
)
def test_shapes_a_model_cannot_take_are_refused(name: str, input_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"use mlp|give the shape of one sample"):
        build_model(name, 10, input_shape)


def test_python_functions_work_directly() -> None:
    assert models.resnet20(10)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert models.mlp(3, 8, (4,))(torch.randn(2, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        models.mlp(widths=())
