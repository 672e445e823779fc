"""Attention computed again, rightly and in the ways in which it goes wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Variation", "attend", "packings", "right_ways", "weights_behind", "wrong_ways"]

Rotary = Literal["", "neighbours", "halves"]
Scale = Literal["head", "none", "width", "linear"]
Axis = Literal["keys", "queries", "heads"]
Split = Literal["heads", "view", "interleaved"]
Values = Literal["value", "key", "query"]
Mask = Literal[
    "right",
    "none",
    "no future",
    "no padding",
    "future only",
    "after",
    "times",
    "added",
    "inverted",
    "one late",
    "strict",
]


@dataclass(frozen=True)
class Variation:
    """One way to compute attention from queries, keys and values.

    Attributes
    ----------
    fault : str
        What is wrong with it; empty for a right one.
    fix : str
    rotary : {"", "neighbours", "halves"}
        Whether queries and keys turn with their place, and which numbers make a pair.
    turned : str
        What turns: "qk" if it is right.
    scale, axis, split, merge, values, mask : str
        The ways that it can go.
    base : float
        Of rotary positions.
    """

    fault: str = ""
    fix: str = ""
    rotary: Rotary = ""
    turned: str = "qk"
    scale: Scale = "head"
    axis: Axis = "keys"
    split: Split = "heads"
    merge: Split = "heads"
    values: Values = "value"
    mask: Mask = "right"
    base: float = 10_000.0


def right_ways(base: float, free_scale: bool) -> Iterator[Variation]:
    """Yield right ways: with and without rotary positions, with heads side by side or interleaved."""
    rotaries: tuple[Rotary, ...] = ("", "neighbours", "halves")
    splits: tuple[Split, ...] = ("heads", "interleaved")
    scales: tuple[Scale, ...] = ("head", "none", "width", "linear") if free_scale else ("head",)
    for rotary, split, scale in itertools.product(rotaries, splits, scales):
        yield Variation(rotary=rotary, split=split, merge=split, scale=scale, base=base)


def wrong_ways(base: float) -> Iterator[Variation]:
    """Yield what goes wrong, one thing at a time, the commonest first."""
    scale = "Divide the scores by the square root of the width of one head."
    heads = "Split with unflatten(-1, (heads, -1)).transpose(1, 2), merge with transpose(1, 2).flatten(2)."
    mask = "Put the lowest finite number where a token must not look, before the softmax."
    single = (
        Variation("scores are not scaled", scale, scale="none"),
        Variation(
            "scores are divided by the root of the model's width, not of a head's", scale, scale="width"
        ),
        Variation("scores are divided by the width of a head, not by its root", scale, scale="linear"),
        Variation(
            "softmax runs over the queries, not the keys",
            "Take the softmax over the last dimension of the scores.",
            axis="queries",
        ),
        Variation(
            "softmax runs over the heads, not the keys",
            "Take the softmax over the last dimension of the scores.",
            axis="heads",
        ),
        Variation("heads are merged without the transpose", heads, merge="view"),
        Variation("heads are split by view, across tokens", heads, split="view"),
        Variation("heads are split and merged by view, across tokens", heads, split="view", merge="view"),
        Variation(
            "values come from the key projection", "Use the value projection for values.", values="key"
        ),
        Variation(
            "values come from the query projection", "Use the value projection for values.", values="query"
        ),
        Variation("nothing is masked", mask, mask="none"),
        Variation("the future is not masked", mask, mask="no future"),
        Variation("padding is not masked", mask, mask="no padding"),
        Variation(
            "the mask works after the softmax, and the weights no longer sum to one", mask, mask="after"
        ),
        Variation("scores are multiplied by the mask", mask, mask="times"),
        Variation("the mask of 0 and 1 is added to the scores", mask, mask="added"),
        Variation("the mask is inverted", mask, mask="inverted"),
        Variation("the mask of the future is off by one: a token sees the next", mask, mask="one late"),
        Variation("the mask of the future hides the token itself", mask, mask="strict"),
    )
    turned = "Turn queries and keys by their place's angle, and nothing else."
    for rotary in ("", "neighbours", "halves"):
        for variation in single:
            yield replace(variation, rotary=rotary, base=base)
        if rotary:
            for what, said in (("q", "queries alone turn"), ("k", "keys alone turn"), ("qkv", "values turn")):
                fault = f"rotary positions: {said}"
                yield Variation(fault, turned, rotary=rotary, turned=what, base=base)


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool, real: Tensor, way: Variation
) -> Tensor:
    """Compute attention in one way.

    Parameters
    ----------
    query, key, value : Tensor
        (batch, seq, width): straight out of their projections. Keys and values can have fewer heads.
    heads : int
        Of the queries.
    causal : bool
    real : Tensor
        Bool (batch, seq): what is not padding.
    way : Variation

    Returns
    -------
    Tensor
        (batch, seq, width): what goes into the output projection.
    """
    width, of_head = query.size(-1), query.size(-1) // heads
    source = {"value": value, "key": key, "query": query}[way.values]
    q, k, v = (_split(part, of_head, way.split) for part in (query, key, source))
    if way.rotary:
        q = _turn(q, way) if "q" in way.turned else q
        k = _turn(k, way) if "k" in way.turned else k
        v = _turn(v, way) if "v" in way.turned else v
    k, v = (part.repeat_interleave(heads // part.size(1), dim=1) for part in (k, v))
    scale = {"head": of_head**-0.5, "none": 1.0, "width": width**-0.5, "linear": 1 / of_head}[way.scale]
    visible = _visible(real, causal, way.mask)
    if way.axis == "keys" and way.mask not in ("after", "times", "added"):
        # Numbers, not True and False: a row that sees nothing must not become NaN.
        hidden = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden, scale=scale)
    else:
        mixed = _weights(q @ k.transpose(-2, -1) * scale, visible, way) @ v
    return _merge(mixed, way.merge)


def _weights(scores: Tensor, visible: Tensor, way: Variation) -> Tensor:
    dim = {"keys": -1, "queries": -2, "heads": 1}[way.axis]
    if way.mask == "after":
        return scores.softmax(dim) * visible
    if way.mask == "times":
        return (scores * visible).softmax(dim)
    if way.mask == "added":
        return (scores + visible.float()).softmax(dim)
    return scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim)


def _visible(real: Tensor, causal: bool, mask: Mask) -> Tensor:
    """Return bool (batch, 1, seq, seq)."""
    seq = real.size(1)
    past = torch.ones(seq, seq, dtype=torch.bool).tril({"one late": 1, "strict": -1}.get(mask, 0))
    if not causal or mask in ("none", "no future"):
        past = torch.ones_like(past)
    seen = torch.ones_like(real) if mask in ("none", "no padding") else real
    visible = past[None, None] & seen[:, None, None, :]
    return ~visible if mask == "inverted" else visible


def _split(x: Tensor, of_head: int, how: Split) -> Tensor:
    batch, seq, width = x.shape
    if how == "view":
        return x.reshape(batch, width // of_head, seq, of_head)
    if how == "interleaved":
        return x.reshape(batch, seq, of_head, width // of_head).permute(0, 3, 1, 2)
    return x.reshape(batch, seq, width // of_head, of_head).transpose(1, 2)


def _merge(x: Tensor, how: Split) -> Tensor:
    batch, heads, seq, of_head = x.shape
    if how == "view":
        return x.reshape(batch, seq, heads * of_head)
    if how == "interleaved":
        return x.permute(0, 2, 3, 1).flatten(2)
    return x.transpose(1, 2).flatten(2)


def _turn(x: Tensor, way: Variation) -> Tensor:
    """Turn pairs of numbers of (batch, heads, seq, width of a head) by their place's angle."""
    seq, width = x.shape[-2:]
    if width % 2:
        return x
    angles = torch.arange(seq)[:, None] * way.base ** (-torch.arange(0, width, 2) / width)
    cos, sin = angles.cos(), angles.sin()
    neighbours = way.rotary == "neighbours"
    one, two = (x[..., 0::2], x[..., 1::2]) if neighbours else x.chunk(2, dim=-1)
    turned = (one * cos - two * sin, one * sin + two * cos)
    return torch.stack(turned, dim=-1).flatten(-2) if neighbours else torch.cat(turned, dim=-1)


def packings(
    query: Tensor, key: Tensor, value: Tensor, heads: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the ways in which one projection can hold queries, keys and values.

    Parameters
    ----------
    query, key, value : Tensor
        (batch, seq, width) each: the first, second and last third of what the projection gave.
    heads : int

    Yields
    ------
    tuple of Tensor
        Queries, keys and values side by side; those of each head side by side, as GPT-NeoX and BLOOM have
        them; those of each number of a head.
    """
    yield query, key, value
    whole = torch.cat((query, key, value), dim=-1)
    by_head = whole.reshape(*whole.shape[:-1], heads, 3, -1).unbind(-2)
    by_number = whole.reshape(*whole.shape[:-1], heads, -1, 3).unbind(-1)
    for q, k, v in (by_head, by_number):
        yield q.flatten(-2), k.flatten(-2), v.flatten(-2)


def weights_behind(merged: Tensor, value: Tensor, heads: int, of_head: int) -> tuple[Tensor, float]:
    """Return the attention weights that must have been, given what came out: whatever the scores were.

    Parameters
    ----------
    merged : Tensor
        (batch, seq, width): what goes into the output projection.
    value : Tensor
        (batch, seq, width of values). `seq` is less than the width of a head: otherwise any output is a mean.
    heads, of_head : int

    Returns
    -------
    weights : Tensor
        (batch, heads, seq, seq).
    residual : float
        The share of the output that no weights explain.
    """
    out, v = _split(merged, of_head, "heads").double(), _split(value, of_head, "heads").double()
    v = v.repeat_interleave(heads // v.size(1), dim=1)
    weights = out @ torch.linalg.pinv(v)
    missing = (weights @ v - out).norm() / out.norm().clamp(min=1e-12)
    return weights, float(missing.detach())
