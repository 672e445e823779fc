"""Attention that is packed, wrapped or listed in ways of other people, and the same with a fault."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from torch import Tensor, nn

from companion.debugging import diagnose, subject_from
from companion.debugging.wrapped import matrix_of, wrapped_in

WORDS = 97
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
}
ATTENTION = ("attention comparison", "attention weights", "attention dropout")
LAYERS = ("token separation", "residual path", "feed forward nonlinearity")


def found(subject, *checks):
    """Return the statuses and problems of some checks by their names."""
    diagnosis = diagnose(subject, slow=False, only=checks)
    return {item.check: item.status for item in diagnosis.findings}, {
        it.check: it for it in diagnosis.problems
    }


def neox():
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES))


def bloom():
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=WORDS, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
    )


class Packed(nn.Module):
    """Attention whose one projection holds three numbers for each number of a head, or three parts of it."""

    def __init__(self, axis: int, dim: int, share: float) -> None:
        super().__init__()
        self.heads, self.axis, self.dim, self.share = 4, axis, dim, share
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [4, 8]
        sizes.insert(self.axis, 3)
        q, k, v = (
            part.transpose(1, 2) for part in self.qkv(x).unflatten(-1, sizes).unbind(self.axis - len(sizes))
        )
        weights = (q @ k.mT * 8**-0.5).softmax(self.dim)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return self.out(self.share * mixed + (1 - self.share) * x)


class PackedClassifier(nn.Module):
    def __init__(self, axis: int, dim: int = -1, share: float = 1.0) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 32), nn.Embedding(64, 32)
        self.attention, self.norm = Packed(axis, dim, share), nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.size(1)))
        return self.head((x + self.attention(self.norm(x))).mean(1))


@pytest.mark.parametrize("make", [neox, bloom])
def test_projections_packed_by_head_in_transformers(make):
    statuses, _ = found(subject_from(make, task="causal-lm"), *ATTENTION[:2])
    assert statuses == {"attention comparison": "not applicable", "attention weights": "ok"}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_packing_is_found_out(axis):
    subject = subject_from(partial(PackedClassifier, axis), task="classification")
    assert found(subject, *ATTENTION[:2])[0] == dict.fromkeys(ATTENTION[:2], "ok")
    _, problems = found(
        subject_from(partial(PackedClassifier, axis, -2), task="classification"), *ATTENTION[:2]
    )
    assert "softmax runs over the queries" in problems["attention comparison"].summary
    assert problems["attention weights"].where == "attention"


def test_a_packing_that_nobody_knows_is_no_fault():
    statuses, _ = found(
        subject_from(partial(PackedClassifier, 1, -1, 0.5), task="classification"), *ATTENTION[:2]
    )
    assert set(statuses.values()) == {"not applicable"}


class LowRank(nn.Module):
    """An adapter of low rank with names of its own."""

    def __init__(self, inner: nn.Module, rank: int = 4) -> None:
        super().__init__()
        one, two = inner.weight.shape if not isinstance(inner, nn.Linear) else inner.weight.shape[::-1]
        self.inner = inner.requires_grad_(False)
        self.down = nn.Parameter(0.02 * torch.randn(one, rank))
        self.up = nn.Parameter(torch.zeros(rank, two))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.down @ self.up


def adapted_gpt2(dropout=0.1):
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=dropout
        )
    ).requires_grad_(False)
    for block in model.transformer.h:
        block.attn.c_attn, block.attn.c_proj = LowRank(block.attn.c_attn), LowRank(block.attn.c_proj)
    return model


def adapted_bert():
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=3))
    model.bert.requires_grad_(False)
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        attention.query, attention.value = LowRank(attention.query), LowRank(attention.value)
    return model


@pytest.mark.parametrize(("make", "task"), [(adapted_gpt2, "causal-lm"), (adapted_bert, "classification")])
def test_adapters_of_low_rank_with_any_names(make, task):
    statuses, problems = found(subject_from(make, task=task), *ATTENTION, *LAYERS)
    assert not problems and set(statuses.values()) == {"ok"}


def adapted_blocks(dim):
    model = Listed(True)
    for block in model.blocks:
        attention = block.attention
        attention.dim, attention.q, attention.v = dim, LowRank(attention.q), LowRank(attention.v)
    return model


def test_attention_with_adapters_is_still_looked_at():
    def no_dropout():
        model = adapted_gpt2()
        for block in model.transformer.h:
            block.attn.attn_dropout.p = 0.0
        return model

    _, problems = found(subject_from(no_dropout, task="causal-lm"), "attention dropout")
    assert problems["attention dropout"].where == "transformer.h.0.attn, transformer.h.1.attn"
    for dim, right in ((-1, True), (-2, False)):
        subject = subject_from(partial(adapted_blocks, dim), task="classification")
        _, problems = found(subject, "attention comparison", "attention weights")
        assert bool(problems) != right
        assert right or "softmax runs over the queries" in problems["attention comparison"].summary


def test_what_an_adapter_is():
    wide, low = nn.Linear(16, 24), LowRank(nn.Linear(16, 24))
    assert wrapped_in(low) is low.inner and matrix_of(low) is low.inner.weight
    assert wrapped_in(wide) is None and matrix_of(wide) is wide.weight
    named = nn.ModuleDict(
        {"base": nn.Linear(16, 24), "a": nn.Linear(16, 4, bias=False), "b": nn.Linear(4, 24, bias=False)}
    )
    assert wrapped_in(named) is named["base"]
    assert wrapped_in(nn.ModuleList([*named.values(), nn.LayerNorm(24)])) is None  # more than a projection
    assert wrapped_in(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))) is None
    assert wrapped_in(nn.ModuleList([nn.Linear(16, 16) for _ in range(4)])) is None  # attention's four


class Plain(nn.Module):
    """Attention with four matrices, and no sum with what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.dim = 4, -1
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.o(((q @ k.mT * 8**-0.5).softmax(self.dim) @ v).transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """A feed-forward part with three matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Whole(nn.Module):
    """Both in one block; the sums with what came in may be forgotten."""

    def __init__(self, summed: float) -> None:
        super().__init__()
        self.attention, self.feed_forward, self.summed = Plain(), Gated(), summed

    def forward(self, x: Tensor) -> Tensor:
        x = self.summed * x + self.attention(x)
        return self.summed * x + self.feed_forward(x)


class Listed(nn.Module):
    """Parts in lists of their own, as XLM has them, or blocks."""

    def __init__(self, blocks: bool = False, summed: float = 1.0) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 32), nn.Embedding(64, 32)
        self.blocks = nn.ModuleList(Whole(summed) for _ in range(2 * blocks))
        self.attentions = nn.ModuleList(Plain() for _ in range(2 * (not blocks)))
        self.feed_forwards = nn.ModuleList(Gated() for _ in range(2 * (not blocks)))
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids) + self.places(torch.arange(input_ids.size(1)))
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            x = x + attention(x)
            x = x + feed_forward(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def test_a_list_of_parts_is_no_list_of_blocks():
    statuses, _ = found(subject_from(Listed, task="classification"), "residual path")
    assert statuses == {"residual path": "not applicable"}
    assert found(subject_from(partial(Listed, True), task="classification"), "residual path")[0] == {
        "residual path": "ok"
    }
    _, problems = found(subject_from(partial(Listed, True, 0.0), task="classification"), "residual path")
    assert problems["residual path"].where == "blocks.0"
