"""A small transformer for text, in parts wherever it is cut; the mask of what is padding crosses with the activations."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import unknown

PADDING = 0


class Block(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron around shortcuts, (N, T, D) to (N, T, D)."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def _heads(self, h: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys and values (N, heads, T, D/heads), and what may be seen (N, 1, T, T)."""
        n, t, d = h.shape
        q, k, v = self.qkv(self.norm1(h)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        seen = mask[:, None, None, :]
        if self.causal:
            seen = seen & torch.ones(t, t, dtype=torch.bool, device=h.device).tril()
        # a text of padding alone looks at itself, or the softmax would be empty
        return q, k, v, seen | torch.eye(t, dtype=torch.bool, device=h.device)

    @torch.no_grad()
    def importance(self, h: Tensor, mask: Tensor) -> Tensor:
        """Return the attention (N, T) that each token is paid, the mean over heads and over tokens that are no padding."""
        q, k, _, seen = self._heads(h, mask)
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(3)
        weight = mask.to(scores.dtype)[:, None, :, None]
        return ((scores * weight).sum(2).mean(1) / weight.sum(2).clamp_min(1).squeeze(1)).masked_fill(~mask, 0.0).float()

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        n, t, d = h.shape
        q, k, v, seen = self._heads(h, mask)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).reshape(n, t, d)
        h = h + self.out(attended)
        h = h + self.mlp(self.norm2(h))
        return h


class Embedding(nn.Module):
    """Tokens (N, T) to embeddings with learned positions (N, T, D)."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)

    def forward(self, tokens: Tensor) -> Tensor:
        h: Tensor = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return h


class Classifier(nn.Module):
    """The mean over what is no padding, a layer norm and a linear layer, (N, T, D) to logits (N, C)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.linear(self.norm(masked_mean(h, mask)))
        return output


class NextToken(Classifier):
    """A layer norm and a linear layer at every position, (N, T, D) to logits (N, C, T)."""

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.linear(self.norm(h)).transpose(1, 2)
        return output


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (N, D) of h (N, T, D) over positions where mask (N, T) is true."""
    weight = mask.to(h.dtype)[:, :, None]
    return (h * weight).sum(1) / weight.sum(1).clamp_min(1)


class Transformer(nn.Module):
    """Tokens (N, T) int64, 0 for padding, to logits (N, C), or with `causal` (N, C, T).

    Cuts: embedding, block1, block2, ...; what crosses is main (N, T, D) and mask (N, T) bool. A tail is the last part, the classifier.
    """

    def __init__(
        self,
        vocabulary: int,
        num_classes: int,
        length: int = 64,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, length, width)
        self.blocks = nn.ModuleDict({f"block{i + 1}": Block(width, heads, causal) for i in range(depth)})
        self.classifier: nn.Module = (NextToken if causal else Classifier)(width, num_classes)
        names = list(self.blocks)
        self.cuts = {"shallow": names[0], "middle": names[depth // 2 - 1], "deep": names[-1]}

    def forward(self, tokens: Tensor) -> Tensor:
        mask, h = tokens != PADDING, self.embedding(tokens)
        for block in self.blocks.values():
            h = block(h, mask)
        output: Tensor = self.classifier(h, mask)
        return output

    def divide(self, at: str, tail: str | None = None) -> tuple[nn.Module, nn.Module, nn.Module | None]:
        """Return the bottom, the top and the tail; raises BadInput for a name that is no cut, with the legal ones."""
        names = list(self.blocks)
        if at not in ("embedding", *names):
            raise unknown("cut", at, ["embedding", *names, *self.cuts])
        if tail not in (None, "classifier", "last"):
            raise unknown("tail", str(tail), ["classifier", "last"])
        before = names[: names.index(at) + 1] if at in names else []
        rest = [name for name in names if name not in before]
        bottom = Bottom(self.embedding, {name: self.blocks[name] for name in before})
        top = Top({name: self.blocks[name] for name in rest}, self.classifier if tail is None else None)
        for part in (bottom, top):
            part.training = self.training
        return bottom, top, None if tail is None else Last(self.classifier)


class Bottom(nn.Module):
    """The embedding and the blocks before the cut."""

    def __init__(self, embedding: nn.Module, blocks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.embedding, self.blocks = embedding, nn.ModuleDict(blocks)

    def forward(self, tokens: Tensor) -> dict[str, Any]:
        mask = tokens != PADDING
        h = self.embedding(tokens)
        local = {}
        block: Any
        for block in self.blocks.values():
            local = {"_importance": partial(block.importance, h.detach(), mask)}
            h = block(h, mask)
        return {"main": h, "mask": mask, **local}


class Top(nn.Module):
    """The blocks behind the cut and the classifier; without one, what it would be given, the mask as a last feature."""

    def __init__(self, blocks: dict[str, nn.Module], classifier: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)
        self.classifier = classifier

    def forward(self, main: Tensor, mask: Tensor) -> Tensor:
        h = main
        for block in self.blocks.values():
            h = block(h, mask)
        if self.classifier is None:
            return torch.cat([h, mask.to(h.dtype)[:, :, None]], 2)
        output: Tensor = self.classifier(h, mask)
        return output


class Last(nn.Module):
    """The classifier as a tail: takes features (N, T, D + 1) whose last one is the mask, which a codec must not change."""

    carries_mask = True

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.classifier(features[:, :, :-1], features[:, :, -1] > 0.5)
        return output
