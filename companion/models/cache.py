"""What a decoder remembers of the tokens so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from companion.models.transformer import TransformerConfig

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """The keys and values of the tokens so far: what a decoder need not compute again.

    Parameters
    ----------
    config : TransformerConfig
    batch : int
    dtype, device
        Of the model's weights.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (2, config.layers, batch, config.heads, config.max_length, config.width // config.heads)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, (batch, heads, seq, width of a head); return all so far."""
        end = self.length + key.size(2)
        self.memory[0, layer, :, :, self.length : end] = key
        self.memory[1, layer, :, :, self.length : end] = value
        return self.memory[0, layer, :, :, :end], self.memory[1, layer, :, :, :end]
