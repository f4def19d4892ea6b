"""The server's part of zeroth-order clients: losses on shifted activations, and one step when all of a batch's have come."""

from dataclasses import replace

import torch
from torch import Tensor

from .server import Server, ServerPart
from .steps import count, forward, train_step
from .wire import Message


class Probes(ServerPart):
    """Answers probes with a loss; the top moves only after the last of a batch, by what a probe or the client's centre brought."""

    def __init__(self) -> None:
        self.learn: dict[int, Message] = {}  # what the top will learn from when a client's probes are over
        self.handlers = {"probe": self.probe, "smashed": self.learned}

    def probe(self, server: Server, messages: list[Message]) -> list[Message]:
        """Return the loss on a probe; nobody else's step comes between the probes of a batch."""
        (message,) = messages
        k = message.client
        with server.meter.phase("server_forward", k), torch.no_grad():
            leaves, output = forward(server, messages, gradient=False, statistics=False)
            loss: Tensor = server.task.loss(output, message.tensors["labels"])
        server.meter.spend("server", "top", count(leaves, server.task))
        if message.numbers["learn"]:
            self.learn[k] = replace(message, kind="smashed", reply="none", open=False)
        if message.open:
            server.open[k] = None
        else:
            server.open.pop(k)
            train_step(server, [self.learn.pop(k)])
        return [Message("loss", {"loss": loss.float()}, client=k, step=message.step)]

    def learned(self, server: Server, messages: list[Message]) -> list[Message]:
        """Train on what comes from a client's weights themselves, which ends its probes."""
        for message in messages:
            server.open.pop(message.client, None)
        return train_step(server, messages)
