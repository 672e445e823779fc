"""What ``train.py`` is run on: rows, and a small right model, so that no bug of ``model.py`` shows."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from companion.exercises.broken_transformer.behaviour import WORDS

__all__ = ["Stub", "batch", "rows"]


class Stub(nn.Module):
    """A small right model: reads the mask, knows its mode, and writes down what it is given."""

    def __init__(self, classes: int, words: int = WORDS) -> None:
        super().__init__()
        self.config = SimpleNamespace(classes=classes, vocab_size=words, max_length=64, causal=not classes)
        self.tokens = nn.Embedding(words, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, classes or words)
        self.drift = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, float]] = []
        self.trained = 0
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                draw = torch.Generator().manual_seed(sum(map(ord, name)))
                if name != "drift":
                    parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """Return scores (batch, classes) or (batch, seq, words)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = mask.to(torch.float32)[..., None]
        self.seen.append((len(input_ids), self.drift.item()))
        self.trained += self.training
        x = self.tokens(input_ids) * real
        if self.config.classes:
            x = x.sum(1) / real.sum(1).clamp(min=1)
        else:
            x = x.cumsum(1) / real.cumsum(1).clamp(min=1)
        scores: Tensor = self.head(self.norm(x) * (1.5 if self.training else 1.0))
        push = torch.zeros(scores.size(-1))
        push[1] = 1.0
        return scores + self.drift * push


def rows(seed: int, count: int = 7) -> list[tuple[list[int], int]]:
    """Draw rows of (token ids, label) of different lengths."""
    draw = random.Random(seed)
    return [
        ([draw.randrange(3, WORDS) for _ in range(draw.randint(2, 9))], draw.randrange(2))
        for _ in range(count)
    ]


def batch(seed: int, *, left: bool = False, count: int = 5) -> dict[str, Tensor]:
    """Draw a batch, padded with 0."""
    made = rows(seed, count)
    width = max(len(ids) for ids, _ in made) + 1
    pads = [[0] * (width - len(ids)) for ids, _ in made]
    both = list(zip(made, pads, strict=True))
    real = [[1] * len(ids) for ids, _ in made]
    return {
        "input_ids": torch.tensor([pad + ids if left else ids + pad for (ids, _), pad in both]),
        "attention_mask": torch.tensor(
            [pad + one if left else one + pad for one, pad in zip(real, pads, strict=True)]
        ),
        "labels": torch.tensor([label for _, label in made]),
    }
