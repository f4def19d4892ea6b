"""Inputs rebuilt from activations by a decoder that learned on the attacker's own (black-box model inversion by a curious server)."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.blocks import chain, conv_bn_relu
from ..models.decoders import Nearest
from ..predict import Owner
from ..private import FILE
from ..streams import drawing, stream
from .seen import Closed, Effort, Seen, Tick

WIDTH, BATCH, LR, SHOWN = 32, 64, 1e-3, 12
WINDOW, SPREAD, C1, C2 = 11, 1.5, 0.01**2, 0.03**2


class Pictures(NamedTuple):
    """Some of the inputs (k, C, H, W) in [0, 1] that were attacked, and what they were rebuilt as."""

    inputs: Tensor
    rebuilt: Tensor


def attack(owner: Owner, seen: Seen, effort: Effort, tick: Tick) -> dict[str, Any]:
    """Return how near the rebuilt inputs are, in dB and of images as SSIM, the mean input beside, and activations of other samples.

    Adam at 1e-3, batches of 64, squared error. Raises Closed where inputs are tokens.
    """
    if seen.own.x is None or seen.theirs.x is None:
        raise Closed("inputs are tokens, which a decoder of values does not rebuild")
    decoder = _learned(owner, seen.own.z, seen.own.x, effort, tick)
    x, mean = seen.theirs.x, seen.own.x.mean(0)
    with torch.no_grad(), owner.autocast():
        rebuilt = torch.cat([decoder(owner.place(part)).float() for part in seen.theirs.z.split(BATCH)])
    guesses = {"": rebuilt, "_without": mean.expand_as(x), "_of_another": rebuilt.roll(1, 0)}
    found: dict[str, Any] = {f"psnr{which}": psnr(guess, x) for which, guess in guesses.items()}
    if x.dim() == 4:
        if x.shape[1] in (1, 3):
            found["pictures"] = Pictures(x[:SHOWN].cpu(), rebuilt[:SHOWN].cpu())
        if min(x.shape[2:]) >= WINDOW:
            found |= {f"ssim{which}": ssim(guess, x) for which, guess in guesses.items()}
    return found


def _learned(owner: Owner, z: Tensor, x: Tensor, effort: Effort, tick: Tick) -> nn.Module:
    with drawing(effort.seed, "audit decoder"):
        decoder = decoder_of(tuple(z.shape[1:]), tuple(x.shape[1:])).to(z.device)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=LR)
    for epoch in range(effort.epochs):
        for index in torch.randperm(len(z), generator=stream(effort.seed, "audit batches", round=epoch)).split(BATCH):
            if len(index) == 1 < len(z):  # a batch norm cannot learn from one
                continue
            with torch.enable_grad(), owner.autocast():
                loss = F.mse_loss(decoder(owner.place(z[index])).float(), owner.place(x[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tick(epoch + 1, effort.epochs)
    return decoder.eval()


def decoder_of(cut: tuple[int, ...], shape: tuple[int, ...]) -> nn.Module:
    """Return a fresh decoder, activations (N, *cut) to inputs (N, *shape) in [0, 1].

    Between maps convolutions and doublings, else two layers.
    """
    if len(cut) != 3 or len(shape) != 3:
        hidden = [("flatten", nn.Flatten()), ("hidden", nn.Linear(math.prod(cut), 256)), ("relu", nn.ReLU())]
        last = [("last", nn.Linear(256, math.prod(shape))), ("sigmoid", nn.Sigmoid()), ("shape", nn.Unflatten(1, shape))]
        return chain([*hidden, *last])
    (channels, height, width), (colours, *whole) = cut, shape
    layers: list[nn.Module] = [chain(conv_bn_relu(channels, WIDTH)), chain(conv_bn_relu(WIDTH, WIDTH))]
    while 2 * height < whole[0] and 2 * width < whole[1]:
        height, width = 2 * height, 2 * width
        layers += [Nearest(height, width), chain(conv_bn_relu(WIDTH, WIDTH))]
    if [height, width] != whole:
        layers += [Nearest(*whole)]
    layers += [chain(conv_bn_relu(WIDTH, WIDTH)), nn.Conv2d(WIDTH, colours, 3, padding=1), nn.Sigmoid()]
    return nn.Sequential(*layers)


def psnr(guess: Tensor, x: Tensor) -> float:
    """Return 10 log10(1 / mean squared error), in dB, of values in [0, 1]; 100 where nothing differs."""
    return -10 * math.log10(max(float((guess - x).square().mean()), 1e-10))


def ssim(guess: Tensor, x: Tensor) -> float:
    """Return the mean structural similarity of images (n, C, H, W) in [0, 1] (Wang et al. 2004), at most 1.

    Gaussian windows of 11 x 11 with spread 1.5, each channel apart, no padding: positions where a window is whole.
    """
    values = [
        _ssim(a.flatten(0, 1)[:, None], b.flatten(0, 1)[:, None]) for a, b in zip(guess.split(500), x.split(500), strict=True)
    ]
    return float(torch.cat(values).mean())


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    bell = torch.exp(-(torch.arange(WINDOW, device=a.device) - WINDOW // 2).square() / (2 * SPREAD**2))
    window = torch.outer(bell, bell).div(bell.sum() ** 2)[None, None]

    def over(values: Tensor) -> Tensor:
        return F.conv2d(values, window)

    mean_a, mean_b = over(a), over(b)
    var_a, var_b = over(a * a) - mean_a**2, over(b * b) - mean_b**2
    both = over(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + C1) * (2 * both + C2) / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))


def draw(pictures: Pictures, path: Path) -> None:
    """Write an image file: above what was attacked, below what it was rebuilt as."""
    from matplotlib.figure import Figure

    shown = len(pictures.inputs)
    figure = Figure(figsize=(shown, 2.2), layout="constrained")
    panels = figure.subplots(2, shown, squeeze=False)
    for row, name, images in zip(panels, ("inputs", "rebuilt"), pictures, strict=True):
        for ax, image in zip(row, images, strict=True):
            ax.imshow(image.movedim(0, 2).expand(-1, -1, 3).numpy(), vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.savefig(path, dpi=100)
    path.chmod(FILE)
