"""What a decoder remembers of the tokens so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from companion.models.transformer import TransformerConfig

__all__ = ["FixedShapeCache", "KeyValueCache"]


class KeyValueCache:
    """The keys and values of the tokens so far: what a decoder need not compute again.

    Parameters
    ----------
    config : TransformerConfig
    batch : int
    capacity : int, optional
        Tokens, at most: all their memory is taken at once. Default: the model's `max_length`.
    dtype, device
        Of the model's weights.

    Attributes
    ----------
    keys, values : list of Tensor
        One for each layer, (batch, heads, capacity, width of a head). Zero where no token is yet.
    length : int
        Tokens so far.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch: int,
        *,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        capacity = config.max_length if capacity is None else capacity
        shape = (batch, config.heads, capacity, config.width // config.heads)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, (batch, heads, seq, width of a head); return all so far."""
        keys, values = self.keys[layer], self.values[layer]
        end = self.length + key.size(2)
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may come several times, or not at all."""
        for memory in (self.keys, self.values):
            for layer, old in enumerate(memory):
                chosen = old[rows, :, : self.length]
                if len(rows) != len(old):
                    # Zeros, not whatever was in the memory: a hidden NaN is still NaN when multiplied by 0.
                    memory[layer] = old.new_zeros(len(rows), *old.shape[1:])
                memory[layer][:, :, : self.length] = chosen

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values take, filled or not, as the storage says."""
        return sum(memory.untyped_storage().nbytes() for memory in (*self.keys, *self.values))


class FixedShapeCache(KeyValueCache):
    """A view of a cache whose shapes never change, for a compiled step.

    It gives all of the room, filled or not. The attention mask, (batch, capacity), has to hide what is empty.
    So the same machine code serves the second token and the thousandth; a slice would have another shape, and
    another compilation, at each.

    Parameters
    ----------
    keys, values : sequence of Tensor
        Those of a `KeyValueCache`, which are written to.
    position : Tensor
        int64 (1,): where the next token goes. A tensor, because a number would become part of the code.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], position: Tensor) -> None:
        self.keys, self.values, self.position, self.length = list(keys), list(values), position, 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values of one token at `position`; return all of the room."""
        keys = self.keys[layer].index_copy_(2, self.position, key)
        values = self.values[layer].index_copy_(2, self.position, value)
        return keys, values
