"""Small decoders with random weights that write varied text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from companion.models import Transformer, TransformerConfig

VOCABULARY = 50


def jittered(model: Any, scale: float = 0.6) -> Any:
    """Spread the matrices: fresh weights attend to all alike, and write one word again and again."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter) * (parameter.dim() > 1))
    return model.eval()


def decoder(seed: int = 0, **options: Any) -> Transformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape: dict[str, Any] = {"width": 32, "max_length": 64, "causal": True} | options
        model: Transformer = jittered(Transformer(TransformerConfig(VOCABULARY, **shape)))
    return model


def prompts(rows: int = 3, seq: int = 8, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, seq), generator=torch.Generator().manual_seed(seed))


def left_padded(lengths: list[int], seq: int) -> Tensor:
    """Return a mask of rows of these lengths."""
    return (torch.arange(seq) >= seq - torch.tensor(lengths)[:, None]).long()
