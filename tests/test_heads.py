"""Auxiliary heads and decoders: their sizes, their outputs, and that every one of their parameters is trained."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cutlayer.models import DECODERS, HEADS, build_decoder, build_head, resnet20
from cutlayer.task import Task

torch.set_num_threads(1)

# One cut of every kind: (cut_shape, later_stages)
CUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "shallow": ((16, 32, 32), (32, 64)),
    "deep": ((32, 16, 16), (64,)),
    "last stage": ((64, 8, 8), ()),
    "odd sides": ((6, 7, 5), ()),
    "row": ((8, 1, 9), (12,)),
    "one pixel": ((16, 1, 1), ()),
    "vector": ((64,), ()),
    "short vector": ((2,), ()),
    "sequence": ((12, 24), ()),
}


def task(cut: str, input_shape: tuple[int, ...] = (3, 32, 32), num_classes: int = 10) -> Task:
    cut_shape, later = CUTS[cut]
    return Task(num_classes=num_classes, input_shape=input_shape, cut_shape=cut_shape, later_stages=later)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def macs(module: nn.Module, z: torch.Tensor) -> int:
    """Multiply-adds of the convolutions and linear layers for one sample."""
    total = 0

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * layer.weight[0].numel()  # type: ignore[index]

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    module.eval()(z)
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("name", "shallow", "deep"),
    [("linear", 163_850, 81_930), ("pool_linear", 170, 330), ("mlp", 152_330, 168_714)],
)
def test_4_4_parameter_counts(name: str, shallow: int, deep: int) -> None:
    assert parameters(build_head(name, task("shallow"))) == shallow
    assert parameters(build_head(name, task("deep"))) == deep


def test_price_of_heads_and_decoders_beside_the_bottom() -> None:
    stem, stage1, *_ = resnet20().eval()
    bottom = nn.Sequential(stem, *list(stage1.children())[:2])
    price = macs(bottom, torch.randn(1, 3, 32, 32))
    z = torch.randn(1, 16, 32, 32)
    t = task("shallow")
    share = {name: macs(build_head(name, t), z) / price for name in HEADS}
    share |= {name: macs(build_decoder(name, t), z) / price for name in DECODERS}
    assert share["mlp"] == pytest.approx(0.015, abs=0.001)
    assert share["block"] == pytest.approx(0.72, abs=0.005)
    assert share["lite"] == pytest.approx(0.18, abs=0.005)
    assert share["block"] + share["conv2"] == pytest.approx(0.93, abs=0.005)
    assert share["conv1x1"] == pytest.approx(0.005, abs=0.001)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", HEADS)
def test_T4_8_every_head_parameter_moves_in_one_step(name: str, cut: str) -> None:
    torch.manual_seed(0)
    t = task(cut)
    head = build_head(name, t)
    optimizer = torch.optim.SGD(head.parameters(), 1.0)
    before = {key: p.detach().clone() for key, p in head.named_parameters()}
    z = torch.rand(8, *t.cut_shape, requires_grad=True)
    logits = head(z)
    assert logits.shape == (8, 10)
    torch.autograd.backward(F.cross_entropy(logits, torch.arange(8)))
    optimizer.step()
    assert z.grad is not None
    assert z.grad.any()
    assert [key for key, p in head.named_parameters() if torch.equal(p, before[key])] == []


@pytest.mark.parametrize("name", HEADS)
def test_heads_follow_the_number_of_classes(name: str) -> None:
    assert build_head(name, task("deep", num_classes=100))(torch.rand(2, 32, 16, 16)).shape == (2, 100)


def test_wide_has_the_widths_of_the_measured_runs() -> None:
    def widths(cut: str) -> list[int]:
        return [m.out_channels for m in build_head("wide", task(cut)).modules() if isinstance(m, nn.Conv2d)]

    assert widths("deep") == [64, 64, 64]
    assert widths("shallow") == [64, 64, 64, 128, 128, 128]


def test_without_later_stages_the_width_doubles_twice_up_to_512() -> None:
    def widths(channels: int) -> list[int]:
        head = build_head("block", Task(cut_shape=(channels, 4, 4)))
        return [m.out_channels for m in head.modules() if isinstance(m, nn.Conv2d)]

    assert widths(64) == [128, 128, 256, 256]
    assert widths(384) == [512] * 4


def test_mlp_depth_and_width() -> None:
    head = build_head("mlp", task("vector"), depth=1, width=8)
    assert parameters(head) == 64 * 8 + 8 + 16 + 8 * 10 + 10
    with pytest.raises(ValueError, match="1 or more"):
        build_head("mlp", task("vector"), depth=0)


@pytest.mark.parametrize("name", HEADS)
def test_heads_refuse_cuts_they_cannot_take(name: str) -> None:
    with pytest.raises(ValueError, match="set it to the shape"):
        build_head(name, Task())
    t = Task(cut_shape=(2, 3, 4, 5))
    if name == "linear":
        assert build_head(name, t)(torch.rand(2, 2, 3, 4, 5)).shape == (2, 10)
    else:
        with pytest.raises(ValueError, match="cut where they are"):
            build_head(name, t)


def test_layer_norm_of_one_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="use the auxiliary head 'linear'"):
        build_head("block", Task(cut_shape=(1,)))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("cut", "input_shape"),
    [("shallow", (3, 32, 32)), ("deep", (3, 32, 32)), ("last stage", (1, 32, 32)), ("one pixel", (3, 4, 4)),
     ("vector", (30,)), ("vector", (3, 8, 8)), ("sequence", (20, 5)), ("shallow", (40,))],
)  # fmt: skip
def test_decoders_give_logits_of_the_input_and_train_every_parameter(name: str, cut: str, input_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    t = task(cut, input_shape)
    decoder = build_decoder(name, t)
    before = {key: p.detach().clone() for key, p in decoder.named_parameters()}
    logits = decoder(torch.rand(4, *t.cut_shape))
    assert logits.shape == (4, *input_shape)
    torch.autograd.backward(F.binary_cross_entropy_with_logits(logits, torch.rand_like(logits)))
    torch.optim.SGD(decoder.parameters(), 1.0).step()
    assert [key for key, p in decoder.named_parameters() if torch.equal(p, before[key])] == []


def test_sizes_that_do_not_divide() -> None:
    t = task("odd sides", (3, 15, 10))
    assert build_decoder("conv2", t)(torch.rand(2, 6, 7, 5)).shape == (2, 3, 15, 10)
    for input_shape in [(3, 15, 10), (3, 14, 15), (3, 3, 3)]:
        with pytest.raises(ValueError, match="use the decoder 'conv2'"):
            build_decoder("conv1x1", task("odd sides", input_shape))


def test_unknown_names_are_refused_with_the_legal_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown auxiliary 'blok'. Did you mean 'block'") as refused:
        build_head("blok", task("deep"))
    assert all(name in str(refused.value) for name in HEADS)
    with pytest.raises(ValueError, match=r"unknown decoder 'conv3'. Did you mean 'conv2'") as refused:
        build_decoder("conv3", task("deep"))
    assert all(name in str(refused.value) for name in DECODERS)


def narrow(task: Task, depth: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(task.cut_shape[0], width), nn.Linear(width, task.num_classes))


def test_a_head_from_outside_is_called_as_the_rows_are() -> None:
    head = build_head(f"{__name__}:narrow", task("vector"), width=5)
    assert parameters(head) == 64 * 5 + 5 + 5 * 10 + 10
