"""Graph isomorphism network (Xu et al., arXiv 1810.00826) for batches of graphs, in parts wherever it is cut."""

import torch
from torch import Tensor, nn

from ..errors import unknown


class Graph:
    """Where the nodes and edges of a batch belong: `owner` (nodes,) says which graph, `ends` (2, E) which rows."""

    def __init__(self, nodes: Tensor, edges: Tensor | None = None, edge_counts: Tensor | None = None) -> None:
        self.num = len(nodes)
        self.owner = torch.arange(self.num, device=nodes.device).repeat_interleave(nodes)
        if edges is not None and edge_counts is not None:
            first = (nodes.cumsum(0) - nodes).repeat_interleave(edge_counts)
            self.ends = (edges + first[:, None]).T

    def pool(self, h: Tensor) -> Tensor:
        """Return the sum over each graph's nodes, (nodes, D) to (B, D)."""
        return torch.zeros(self.num, h.shape[1], dtype=h.dtype, device=h.device).index_add(0, self.owner, h)


def convolved(h: Tensor, convolutions: nn.ModuleDict, graph: Graph) -> tuple[Tensor, list[Tensor]]:
    """Return h behind the convolutions, and the pooled layers before each of them."""
    pooled = []
    for convolution in convolutions.values():
        pooled.append(graph.pool(h))
        h = convolution(h, graph.ends)
    return h, pooled


class Convolution(nn.Module):
    """ReLU(BN(MLP(h + sum of the neighbours' h))), epsilon = 0."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.BatchNorm1d(width)

    def forward(self, h: Tensor, ends: Tensor) -> Tensor:
        around = h.index_add(0, ends[0], h[ends[1]])
        return torch.relu(self.norm(self.mlp(around)))


class Readout(nn.Module):
    """Pooled layers (B, sum of widths), each with a linear map to scores of its own, dropped out and summed."""

    def __init__(self, widths: list[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        self.widths = widths
        self.linears = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        scores = [self.dropout(linear(h)) for linear, h in zip(self.linears, pooled.split(self.widths, 1), strict=True)]
        return torch.stack(scores).sum(0)


class GIN(nn.Module):
    """`num_convolutions` convolutions and a readout that sees the sum over nodes of every layer, the input too.

    x (all nodes, d), nodes (B,), edges (E, 2) and edge_counts (B,) to logits (B, C). Cuts: conv1, conv2, ...: node embeddings
    cross, with the graph's structure and the pooled layers before them; nodes (the last convolution): the structure stays at
    home, only counts cross; readout: pooled layers alone, one row a graph.
    """

    def __init__(
        self, num_classes: int, features: int, width: int = 64, num_convolutions: int = 4, dropout: float = 0.5
    ) -> None:
        super().__init__()
        widths = [features] + [width] * num_convolutions
        self.convolutions = nn.ModuleDict({f"conv{i + 1}": Convolution(widths[i], width) for i in range(num_convolutions)})
        self.readout = Readout(widths, num_classes, dropout)
        names = list(self.convolutions)
        self.cuts = {"nodes": names[-1], "shallow": names[0], "middle": names[len(names) // 2 - 1], "deep": "readout"}

    def forward(self, x: Tensor, nodes: Tensor, edges: Tensor, edge_counts: Tensor) -> Tensor:
        graph = Graph(nodes, edges, edge_counts)
        h, layers = convolved(x, self.convolutions, graph)
        output: Tensor = self.readout(torch.cat([*layers, graph.pool(h)], 1))
        return output

    def divide(self, at: str, tail: str | None = None) -> tuple[nn.Module, nn.Module, nn.Module | None]:
        """Return the bottom, the top and the tail; raises BadInput for a name that is no cut, with the legal ones."""
        legal = [*self.convolutions, "readout"]
        if at not in legal:
            raise unknown("cut", at, [*legal, *self.cuts])
        if tail is not None:
            if tail not in ("readout", "last") or at == "readout":
                raise unknown("tail", tail, ["readout"] if at != "readout" else ["none, as the cut is readout"])
            return Bottom(self, at), Top(self, at, whole=False), self.readout
        return Bottom(self, at), Top(self, at), None


class Bottom(nn.Module):
    """The convolutions up to the cut."""

    def __init__(self, model: GIN, at: str) -> None:
        super().__init__()
        names = list(model.convolutions)
        self.last = at == names[-1]
        self.pools = at == "readout"
        mine = names if self.pools else names[: names.index(at) + 1]
        self.convolutions = nn.ModuleDict({name: model.convolutions[name] for name in mine})
        self.training = model.training

    def forward(self, x: Tensor, nodes: Tensor, edges: Tensor, edge_counts: Tensor) -> dict[str, Tensor]:
        graph = Graph(nodes, edges, edge_counts)
        h, pooled = convolved(x, self.convolutions, graph)
        if self.pools:
            return {"main": torch.cat([*pooled, graph.pool(h)], 1)}
        structure = {} if self.last else {"edges": edges, "edge_counts": edge_counts}
        return {"main": h, "pooled": torch.cat(pooled, 1), "nodes": nodes, **structure}


class Top(nn.Module):
    """The convolutions behind the cut, and the readout unless it is a tail."""

    def __init__(self, model: GIN, at: str, whole: bool = True) -> None:
        super().__init__()
        names = list(model.convolutions)
        rest = [] if at == "readout" else names[names.index(at) + 1 :]
        self.convolutions = nn.ModuleDict({name: model.convolutions[name] for name in rest})
        self.readout = model.readout if whole else nn.Identity()
        self.pooled = at == "readout"
        self.training = model.training

    def forward(
        self,
        main: Tensor,
        pooled: Tensor | None = None,
        nodes: Tensor | None = None,
        edges: Tensor | None = None,
        edge_counts: Tensor | None = None,
    ) -> Tensor:
        if self.pooled:
            output: Tensor = self.readout(main)
            return output
        assert pooled is not None
        assert nodes is not None
        graph = Graph(nodes, edges, edge_counts)
        h, layers = convolved(main, self.convolutions, graph)
        output = self.readout(torch.cat([pooled, *layers, graph.pool(h)], 1))
        return output


def gin(num_classes: int, features: int, width: int = 64) -> GIN:
    """Return the network of the paper's code: 4 convolutions of `width`, dropout 0.5 on the scores."""
    return GIN(num_classes, features, width)
