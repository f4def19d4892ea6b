"""Split learning in raw PyTorch, as a good user would write it: what cutlayer is measured against and must equal."""

import torch
from torch import nn
from torch.nn import functional as F


def sgd(module, lr=0.1, momentum=0.9, weight_decay=0.0):
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


class Conventional:
    """The gradient at the cut comes back."""

    def __init__(self, bottom, top, **how):
        self.bottom, self.top = bottom, top
        self.client, self.server = sgd(bottom, **how), sgd(top, **how)

    def step(self, x, y, autocast):
        with autocast:
            z = self.bottom(x)
        received = z.detach().requires_grad_()
        with autocast:
            loss = F.cross_entropy(self.top(received).float(), y)
        loss.backward()
        self.server.step()
        self.server.zero_grad()
        z.backward(received.grad)
        self.client.step()
        self.client.zero_grad()
        return loss.detach()


class Decoupled:
    """A head at the cut gives the client its loss; nothing comes back."""

    def __init__(self, bottom, top, head, **how):
        self.bottom, self.top, self.head = bottom, top, head
        self.client, self.server = sgd(nn.ModuleList([bottom, head]), **how), sgd(top, **how)

    def step(self, x, y, autocast):
        with autocast:
            z = self.bottom(x)
        received = z.detach()
        with autocast:
            loss = F.cross_entropy(self.top(received).float(), y)
        loss.backward()
        self.server.step()
        self.server.zero_grad()
        with autocast:
            local = F.cross_entropy(self.head(z).float(), y)
        local.backward()
        self.client.step()
        self.client.zero_grad()
        return loss.detach()
