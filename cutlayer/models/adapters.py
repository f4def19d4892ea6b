"""Transformers of other libraries in parts: a twin of a family's forward pass, a few lines each."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput, unknown


class Bert(nn.Module):
    """A Hugging Face BertForSequenceClassification as a network that can be cut after its embeddings or any layer.

    Tokens (N, T) int64, padding as its config says, to logits (N, C). Cuts: embeddings, layer1, layer2, ...; the mask crosses too.
    Attention must be "eager" or "sdpa"; both take a mask that is added to the scores.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        names = [f"layer{i + 1}" for i in range(len(model.bert.encoder.layer))]
        self.cuts = {"shallow": names[0], "middle": names[len(names) // 2], "deep": names[-1]}

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, attention_mask=tokens != self.model.config.pad_token_id).logits
        return logits

    def divide(self, at: str, tail: str | None = None) -> tuple[nn.Module, nn.Module, nn.Module | None]:
        """Return the bottom and the top; raises BadInput for a name that is no cut, and for a tail."""
        bert = self.model.bert
        legal = ["embeddings", *(f"layer{i + 1}" for i in range(len(bert.encoder.layer)))]
        if at not in legal:
            raise unknown("cut", at, legal)
        if tail is not None:
            raise BadInput(f"tail = {tail!r}: this adapter has none; give cl.Parts(bottom, top, tail)")
        layers = list(bert.encoder.layer)[: legal.index(at)]
        rest = list(bert.encoder.layer)[legal.index(at) :]
        bottom = BertBottom(bert.embeddings, layers, self.model.config.pad_token_id)
        top = BertTop(rest, bert.pooler, self.model.dropout, self.model.classifier)
        bottom.training = top.training = self.training
        return bottom, top, None


class BertBottom(nn.Module):
    """The embeddings and the layers before the cut."""

    def __init__(self, embeddings: nn.Module, layers: list[nn.Module], padding: int) -> None:
        super().__init__()
        self.embeddings, self.layers, self.padding = embeddings, nn.ModuleList(layers), padding

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        mask = tokens != self.padding
        return {"main": through(self.layers, self.embeddings(tokens), mask), "mask": mask}


class BertTop(nn.Module):
    """The layers behind the cut, the pooler and the classifier."""

    def __init__(self, layers: list[nn.Module], pooler: nn.Module, dropout: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.layers, self.pooler, self.dropout, self.classifier = nn.ModuleList(layers), pooler, dropout, classifier

    def forward(self, main: Tensor, mask: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.dropout(self.pooler(through(self.layers, main, mask))))
        return output


def through(layers: nn.ModuleList, h: Tensor, mask: Tensor) -> Tensor:
    """Return h (N, T, D) behind some layers; positions where mask (N, T) is false are not looked at."""
    hidden = torch.zeros(mask.shape, dtype=h.dtype, device=h.device).masked_fill(~mask, torch.finfo(h.dtype).min)
    for layer in layers:
        h = layer(h, hidden[:, None, None, :])
        h = h[0] if isinstance(h, tuple) else h
    return h


def tiny_bert(vocabulary: int, num_classes: int, length: int) -> Bert:
    """Return a BERT classifier of 4 layers of width 64; raises BadInput if the library transformers is not there."""
    try:
        from transformers import BertConfig, BertForSequenceClassification
    except ImportError as error:
        raise BadInput("bert needs the library transformers: pip install 'cutlayer[text]'") from error
    labels: dict[str, Any] = {"num_labels": num_classes}
    config = BertConfig(
        **labels, vocab_size=vocabulary, max_position_embeddings=length, hidden_size=64, num_hidden_layers=4,
        num_attention_heads=4, intermediate_size=256, pad_token_id=0,
    )  # fmt: skip
    return Bert(BertForSequenceClassification(config))
