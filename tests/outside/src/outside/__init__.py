"""A stranger's package: a model, a data set, a loss and a method, none of which cutlayer knows."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Dataset

import cutlayer as cl


class Rings(Dataset):
    """Points of the plane inside and outside a circle."""

    def __init__(self, n, seed):
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 2, generator=draw)
        self.y = (self.x.norm(dim=1) > 1.18).long()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


def rings():
    return cl.data.from_datasets(Rings(96, 0), Rings(48, 1), num_classes=2, name="rings")


def parts(num_classes, input_shape):
    bottom = nn.Sequential(nn.Linear(input_shape[0], 16), nn.Tanh())
    return cl.Parts(bottom, nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, num_classes)))


def smoothed(output, y):
    return nn.functional.cross_entropy(output.float(), y, label_smoothing=0.1)


def error_rate(output, y):
    return float((output.argmax(1) != y).double().mean())


def agreement(output, y):
    return 1 - error_rate(output, y)


task = cl.Task(loss=smoothed, metrics={"accuracy": agreement, "error_rate": error_rate})


class Rounded:
    """Sends whole eighths, as bytes."""

    def encode(self, tensor):
        return ((tensor.float() * 8).round().clamp(-127, 127).to(torch.int8),)

    def decode(self, parts):
        return parts[0].float() / 8

    def state(self):
        return {}

    def load(self, state):
        pass


def rounded(role):
    return Rounded()


@dataclass(frozen=True)
class DampedOptions:
    """damping: what is left of the returned gradient."""

    damping: float = 0.5


class Damped:
    """Conventional split learning with a damped gradient."""

    Options = DampedOptions
    needs_labels = False

    def __init__(self, options, client):
        self.options = options

    @staticmethod
    def comes_back(options):
        return True

    def step(self, client, batch):
        z = client.forward(batch)
        reply = yield from client.uplink(z, batch)
        client.update(z=z, cut_grad={role: self.options.damping * grad for role, grad in reply.tensors.items()})
        return {}

    def state(self):
        return {}

    def load(self, state):
        pass
