"""A transformer to read: encoder or decoder, from the same blocks.

Everything the course says about the inside of a transformer can be pointed at in this file, and every
architecture bug of the debugging chapter is a small edit of it. It loads the weights of BERT and GPT-2 and
gives their answers (`companion.models.conversion`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from companion.models.cache import KeyValueCache

__all__ = ["Attention", "Block", "FeedForward", "Transformer", "TransformerConfig"]


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a `Transformer`.

    Attributes
    ----------
    vocab_size : int
    width : int
        Of a token's vector.
    layers, heads : int
    hidden : int
        Width inside the feed-forward part; 0 for four times `width`.
    max_length : int
        Tokens, at most: the rows of the position table, and the room in a cache.
    causal : bool
        A decoder, whose tokens see only what came before them. Otherwise an encoder.
    classes : int
        0 for a language model: one score for each word at each token. Otherwise one for each class, read
        from the first token of an encoder and from the last real one of a decoder.
    norm : {"pre", "post"}
        Before each part of a block, as in GPT-2, or after its residual sum, as in BERT.
    positions : {"learned", "sinusoidal", "rotary"}
    tied : bool
        Whether a language model reads and writes words with one table.
    token_types : int
        Kinds of tokens: 2 tells the first text of a pair from the second.
    dropout : float
    activation : {"gelu", "gelu_tanh", "relu"}
    eps : float
        Added to the variance in a normalisation.
    """

    vocab_size: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    hidden: int = 0
    max_length: int = 128
    causal: bool = False
    classes: int = 0
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"
    tied: bool = True
    token_types: int = 0
    dropout: float = 0.1
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split into {self.heads} heads of equal width")
        if self.positions != "learned" and (self.width // self.heads) % 2:
            raise ValueError(
                f"{self.positions} positions pair up the numbers of a head, and heads of width "
                f"{self.width // self.heads} have an odd one: choose another width or number of heads"
            )


class Attention(nn.Module):
    """Each token takes a weighted mean of what the tokens it can see have to say [1]_.

    References
    ----------
    .. [1] Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.softmax = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, visible: Tensor, turns: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """(batch, seq, width) to the same shape.

        `visible` is bool (batch, 1, seq, keys): whether a token sees another. `turns`, with rotary positions
        alone, is what `rotations` returns.
        """
        query = self.split_heads(self.query(x))
        key = self.split_heads(self.key(x))
        value = self.split_heads(self.value(x))
        if turns is not None:
            query, key = rotate(query, turns), rotate(key, turns)
        if cache is not None:
            key, value = cache.extend(self.layer, key, value)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
        # The lowest finite number, not minus infinity: a row that sees nothing must not become NaN.
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        weights = self.dropout(self.softmax(scores))
        return self.output(self.merge_heads(weights @ value))

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, seq, width) to (batch, heads, seq, width of a head)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merge_heads(self, x: Tensor) -> Tensor:
        """(batch, heads, seq, width of a head) to (batch, seq, width)."""
        return x.transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """Works on each token by itself: wider, bent, and back."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = config.hidden or 4 * config.width
        self.expand = nn.Linear(config.width, hidden)
        activations = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "relu": nn.ReLU()}
        self.activation = activations[config.activation]
        self.contract = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, width) to the same shape."""
        return self.contract(self.activation(self.expand(x)))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.norm_first = config.norm == "pre"
        self.attention = Attention(config, layer)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, visible: Tensor, turns: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Take and return (batch, seq, width); the rest as in `Attention`."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), visible, turns, cache))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, visible, turns, cache)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Transformer(nn.Module):
    """An encoder or a decoder, with scores for words or for classes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_length, config.width)
        if config.token_types:
            self.token_types = nn.Embedding(config.token_types, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, eps=config.eps) if config.norm == "post" else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=config.eps) if config.norm == "pre" else None
        self.head = nn.Linear(config.width, config.classes or config.vocab_size, bias=bool(config.classes))
        self.reset_parameters()
        if config.tied and not config.classes:
            self.head.weight = self.tokens.weight

    def reset_parameters(self) -> None:
        """Draw fresh weights as GPT-2 does: small, and smaller where layers add up."""
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.output.weight", "contract.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.layers))
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return scores before softmax: (batch, seq, words), or (batch, classes).

        `input_ids` and `token_type_ids` are int64 (batch, seq); `attention_mask` is 1 for real tokens and 0
        for padding, on either side. With a cache, which is extended, the ids are those of the new tokens, and
        the mask is that of all.
        """
        past = cache.length if cache is not None else 0
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.size(1))
        if attention_mask.size(1) > self.config.max_length:
            raise ValueError(f"{attention_mask.size(1)} tokens, expected {self.config.max_length} at most")
        hidden = self.encode(input_ids, attention_mask, token_type_ids, cache)
        if self.config.classes:
            hidden = hidden[torch.arange(len(hidden)), self.summary_position(attention_mask[:, past:])]
        return self.head(hidden)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the last layer's (batch, seq, width)."""
        new = input_ids.size(1)
        # Counted from the first real token, so that padding on the left moves nothing.
        places = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
        x = self.embed(input_ids, places, token_type_ids)
        turns = rotations(places, self.config) if self.config.positions == "rotary" else None
        visible = self.visibility(attention_mask, new)
        for block in self.blocks:
            x = block(x, visible, turns, cache)
        if cache is not None:
            cache.length += new
        return x if self.final_norm is None else self.final_norm(x)

    def embed(self, input_ids: Tensor, places: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Look up words, places and types: (batch, seq, width)."""
        x = self.tokens(input_ids)
        if self.config.positions == "learned":
            x = x + self.positions(places)
        elif self.config.positions == "sinusoidal":
            x = x + sinusoids(places, self.config.width)
        if self.config.token_types:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.token_types(types)
        return self.dropout(x if self.embedding_norm is None else self.embedding_norm(x))

    def visibility(self, attention_mask: Tensor, new: int) -> Tensor:
        """Return bool (batch, 1, new, seq): which tokens the last `new` ones see."""
        seq = attention_mask.size(1)
        visible = attention_mask.bool()[:, None, None, :].expand(-1, 1, new, seq)
        if self.config.causal:
            visible = visible & torch.ones(seq, seq, dtype=torch.bool, device=visible.device).tril()[-new:]
        return visible

    def summary_position(self, attention_mask: Tensor) -> Tensor:
        """Return (batch,): the first real token of an encoder's texts, the last of a decoder's."""
        steps = torch.arange(attention_mask.size(1), device=attention_mask.device)
        if self.config.causal:
            return (attention_mask.bool() * steps).argmax(dim=1)
        return attention_mask.bool().int().argmax(dim=1)


def frequencies(width: int, device: torch.device) -> Tensor:
    """Return (width / 2,): how fast each pair of numbers turns with the place, from 1 down to 1/10000."""
    return 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Return (batch, seq, width): sines and cosines of the places, in turns (Vaswani et al., section 3.5)."""
    angles = places[..., None] * frequencies(width, places.device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def rotations(places: Tensor, config: TransformerConfig) -> Tensor:
    """Return complex (batch, seq, width of a head / 2): the turn of each pair of numbers at each place."""
    angles = places[..., None] * frequencies(config.width // config.heads, places.device)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring numbers of (batch, heads, seq, width of a head) by their place's angle [1]_.

    References
    ----------
    .. [1] Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).type_as(x)
