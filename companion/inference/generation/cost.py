"""What generating text costs, from the model's shape: multiplications and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from companion.models.transformer import TransformerConfig

__all__ = ["Work", "cache_bytes", "token_flops"]


@dataclass(frozen=True)
class Work:
    """What a model was made to compute.

    Attributes
    ----------
    passes : int
        Calls of the model.
    tokens : int
        Tokens that went through the layers: rows times columns of each call, padding included.
    pairs : int
        Scores of attention in one head: each token times every token in its row, hidden ones included.
    scored : int
        Tokens whose next word was scored, over the whole vocabulary.
    cache_bytes : int
        The largest that the cache's tensors were, measured; 0 without a cache.
    """

    passes: int = 0
    tokens: int = 0
    pairs: int = 0
    scored: int = 0
    cache_bytes: int = 0

    def after(self, rows: int, new: int, keys: int, cache_bytes: int = 0) -> Work:
        """Add one call: `rows` texts, `new` tokens of each, each scored with `keys` tokens."""
        return Work(
            passes=self.passes + 1,
            tokens=self.tokens + rows * new,
            pairs=self.pairs + rows * new * keys,
            scored=self.scored + rows,
            cache_bytes=max(self.cache_bytes, cache_bytes),
        )

    def flops(self, config: TransformerConfig) -> int:
        """Return the floating-point operations in all products of matrices, two for each multiplication.

        In each layer a token takes part in four products with matrices of width x width (query, key, value,
        output) and two of width x hidden; a pair of tokens in two products along the width (score, weighted
        mean); a word's score is one product along the width. Sums, norms and softmax are left out, as
        `torch.utils.flop_counter` leaves them out.
        """
        width, hidden = config.width, config.hidden or 4 * config.width
        per_token = config.layers * (4 * width * width + 2 * width * hidden)
        per_pair = config.layers * 2 * width
        per_score = width * config.vocab_size
        return 2 * (per_token * self.tokens + per_pair * self.pairs + per_score * self.scored)


def token_flops(config: TransformerConfig, length: int, *, cached: bool) -> int:
    """Return the floating-point operations that one more token of one text takes.

    Parameters
    ----------
    config : TransformerConfig
    length : int
        Tokens so far. The last of them is not in the cache yet.
    cached : bool
        With a cache one token goes through the layers, and its cost grows with `length` through attention
        alone. Without one, all of them go through again.

    Returns
    -------
    int
        See `Work.flops` for what is counted.
    """
    return Work().after(1, 1 if cached else length, length).flops(config)


def cache_bytes(
    config: TransformerConfig, *, batch: int = 1, tokens: int = 1, dtype: torch.dtype = torch.float32
) -> int:
    """Return the memory that keys and values take: the two of them, for every layer, head and token.

    Parameters
    ----------
    config : TransformerConfig
    batch, tokens : int
        Texts, and tokens of each. With the defaults: the memory per token. A cache takes the memory of its
        capacity when it is made; `generate` makes it for the tokens that it will hold.
    dtype : torch.dtype
        Of the cache.

    Returns
    -------
    int
        2 x layers x heads x width of a head x bytes of a number x batch x tokens.
    """
    head_width = config.width // config.heads
    return 2 * config.layers * config.heads * head_width * dtype.itemsize * batch * tokens
