"""The server's part of FSL-SAGE: a memory of activations, and heads taught to say what the top's gradient would be."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .auxiliary import head_of
from .cut import Smashed
from .errors import BadInput
from .frozen import still_statistics
from .memory import owned_tensors, tensors_in
from .rows import join_rows
from .server import Server, ServerPart
from .steps import train_step
from .streams import drawing, stream
from .wire import Message

MEASURED_EPOCHS = 2  # of an alignment: the optimizer has its state in the second, and all later ones are like it


class Aligned(ServerPart):
    """Keeps the newest activations of each client with their labels, and aligns its head when the client asks for it.

    `options` as FslSageOptions. The first step of the top comes before the alignment, as in the authors' code.
    """

    def __init__(self, options: Any) -> None:
        self.options = options
        self.heads: dict[int, nn.Module] = {}
        self.saved: dict[int, tuple[Any, Any]] = {}  # of a mark, for heads that are not built yet
        self.optimizers: dict[int, torch.optim.Optimizer] = {}
        self.memory: dict[int, dict[str, Tensor]] = {}  # what came, by role
        self.handlers = {"smashed": self.handle}

    def handle(self, server: Server, messages: list[Message]) -> list[Message]:
        """Train the top, keep what came, and answer those who wait with a head."""
        replies = train_step(server, [replace(message, reply="none") for message in messages])
        for message in messages:
            self.keep(message)
            if message.reply != "none":
                head = self.align(server, message.client)
                tensors = {f"auxiliary/{name}": tensor for name, tensor in head.state_dict().items()}
                replies.append(Message("auxiliary", tensors, client=message.client, step=message.step))
        return replies

    def keep(self, message: Message) -> None:
        """Add a message's activations, and masks beside them, to its client's memory."""
        new = {role: tensor.detach() for role, tensor in message.tensors.items()}
        extra = [role for role in new if role.startswith("smashed/") or len(new[role]) != len(new["labels"])]
        if extra:
            raise BadInput(
                f"method 'fsl_sage' aligns one tensor with a row for each sample, and {', '.join(extra)} crosses here; cut elsewhere"
            )
        new["smashed"] = new["smashed"].float()
        old = self.memory.get(message.client)
        both = new if old is None else {role: join_rows([old[role], tensor], role) for role, tensor in new.items()}
        # copies, or the rows that are left out would live on in the storage
        self.memory[message.client] = {role: tensor[-self.options.memory_size :].clone() for role, tensor in both.items()}

    def align(self, server: Server, client: int) -> nn.Module:
        """Teach a client's head the top's gradient on the memory by the squared error of its own, and return it.

        A head's loss is a mean over its mini-batch and the top's one over the memory, so estimates are scaled to the latter.
        The error of the last pass is recorded as a share of the squared gradient: 1 is what a head that says nothing has.
        """
        kept = self.memory[client]
        head, optimizer = self._head(server, client)
        top, o, meter = server.top_of(client), self.options, server.meter
        drawn = server.training.dropout("alignment", client, server.schedule.round)
        twice = sdpa_kernel(SDPBackend.MATH)  # the others cannot be differentiated twice
        with still_statistics(top), drawn, twice:
            with meter.watched("server", client, server.owned), meter.phase("server_backward", client):
                target = gradient(server, lambda z: top(z.main, **z.others), kept)
                self._teach(server, client, head, optimizer, target, range(min(MEASURED_EPOCHS, o.align_epochs)))
            with meter.phase("server_backward", client):
                self._teach(server, client, head, optimizer, target, range(MEASURED_EPOCHS, o.align_epochs))
        num_samples = len(kept["labels"])
        meter.spend("server", "top", num_samples, 3)
        meter.spend("server", "auxiliary", num_samples * o.align_epochs, 6)  # forward, backward, and both once more
        return head

    def _teach(
        self, server: Server, client: int, head: nn.Module, optimizer: torch.optim.Optimizer, target: Tensor, epochs: range
    ) -> None:  # fmt: skip
        """Train a head for some epochs to give the gradient `target` (n, *cut) on its client's memory."""
        kept, o = self.memory[client], self.options
        y = kept["labels"]
        for epoch in epochs:
            draw = stream(server.training.seed, "alignment", client, server.schedule.round, epoch)
            for index in batches(torch.randperm(len(y), generator=draw).to(y.device), o.align_batch):
                some = {role: tensor[index] for role, tensor in kept.items()}
                estimate = gradient(server, lambda z: z.into(head), some, create_graph=True) * (len(index) / len(y))
                error = (estimate - target[index]).square().sum()
                optimizer.zero_grad(set_to_none=True)
                error.backward()
                optimizer.step()
                if epoch == o.align_epochs - 1:
                    server.note("alignment_error", error / target[index].square().sum().clamp_min(1e-12), 1)
                del estimate, error  # nothing of their graphs is left

    def _head(self, server: Server, client: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        if client not in self.heads:
            with drawing(server.training.seed, "aligned head", client):
                self.heads[client] = head_of(self.options, server.task).to(self.memory[client]["smashed"].device)
            self.optimizers[client] = torch.optim.Adam(self.heads[client].parameters(), lr=self.options.align_lr)
            if client in self.saved:
                weights, slots = self.saved.pop(client)
                self.heads[client].load_state_dict(weights)
                self.optimizers[client].load_state_dict(slots)
        return self.heads[client], self.optimizers[client]

    def owned(self) -> Iterator[Tensor]:
        """Yield the memory, and the heads with their optimizers; those of a mark that are not built yet are as large."""
        yield from tensors_in(self.memory)
        yield from tensors_in(self.saved)
        for k, head in self.heads.items():
            yield from owned_tensors([head], self.optimizers[k])

    def state(self) -> dict[str, Any]:
        built = {k: (head.state_dict(), self.optimizers[k].state_dict()) for k, head in self.heads.items()}
        return {
            "heads": [[k, *both] for k, both in sorted((self.saved | built).items())],
            "memory": [[k, memory] for k, memory in self.memory.items()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.heads, self.optimizers = {}, {}
        self.saved = {k: (weights, slots) for k, weights, slots in state["heads"]}
        self.memory = dict(state["memory"])


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Return the samples (n,) batch by batch; one that is left alone goes with the batch before it, for the sake of BatchNorm."""
    found = list(order.split(size))
    if len(found) > 1 and len(found[-1]) == 1:
        found[-2:] = [torch.cat(found[-2:])]
    return found


def gradient(
    server: Server, compute: Callable[[Smashed], Tensor], kept: Mapping[str, Tensor], create_graph: bool = False
) -> Tensor:
    """Return the gradient (n, *cut) at the cut of the task's loss of what is computed from kept activations."""
    leaf = kept["smashed"].clone().requires_grad_()
    others = {role.partition("/")[2]: tensor for role, tensor in kept.items() if role.startswith("context/")}
    output = compute(Smashed(leaf.clone() if server.copy_input else leaf, others))
    (grad,) = torch.autograd.grad(server.task.loss(output, kept["labels"]), leaf, create_graph=create_graph)
    return grad
