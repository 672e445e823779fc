"""All checks on models that are right: none may raise an alarm."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from companion.debugging import Diagnosis, diagnose, subject_from, subjects_from
from companion.debugging.zoo.subjects import reference_subject

SHAPES = list(itertools.product(("pre", "post"), ("learned", "sinusoidal", "rotary"), (True, False)))
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DISTILBERT = DistilBertConfig(
    vocab_size=97, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
)
GPT2 = GPT2Config(
    vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=1
)
T5 = T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
FAMILIES = {
    "bert-masked": (lambda: BertForMaskedLM(BertConfig(**SMALL)), "masked-lm"),
    "bert-classifier": (
        lambda: BertForSequenceClassification(BertConfig(**SMALL, num_labels=3)),
        "classification",
    ),
    "distilbert-classifier": (lambda: DistilBertForSequenceClassification(DISTILBERT), "classification"),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2), "causal-lm"),
    "t5": (lambda: T5ForConditionalGeneration(T5), "seq2seq"),
}


class TorchClassifier(nn.Module):
    """A classifier of torch's own layers, whose mask is true where there is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 32)
        self.place = nn.Parameter(0.02 * torch.randn(1, 48, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(32, 4)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(src) + self.place[:, : src.size(1)]
        x = self.encoder(x, src_key_padding_mask=src_key_padding_mask)
        pads = torch.zeros_like(src) if src_key_padding_mask is None else src_key_padding_mask
        real = (pads == 0).float().unsqueeze(-1)
        return self.classify((x * real).sum(1) / real.sum(1))


class SelfAttention(nn.Module):
    """One projection for queries, keys and values, as nanoGPT has it."""

    def __init__(self, width: int, heads: int, block_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = (
            part.view(batch, seq, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, 2)
        )
        scores = (q @ k.transpose(-2, -1)) * k.size(-1) ** -0.5
        scores = scores.masked_fill(self.bias[:, :, :seq, :seq] == 0, float("-inf"))
        y = self.attn_dropout(scores.softmax(-1)) @ v
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, seq, width)))


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int, block_size: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, block_size)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """Like nanoGPT: tied, no padding mask, and scores of the last token alone unless it gets targets."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(65, 32), nn.Embedding(40, 32)
        self.h = nn.ModuleList(GPTBlock(32, 4, 40) for _ in range(2))
        self.drop, self.ln_f = nn.Dropout(0.1), nn.LayerNorm(32)
        self.lm_head = nn.Linear(32, 65, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02 if "c_proj" not in name else 0.01)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(idx.size(1))))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def silent(found: Diagnosis, least: int) -> None:
    assert found.ok, found.text()
    assert not [reason for reason in found.not_applicable() if "itself failed" in reason], found.text()
    assert len(found.passed()) >= least, found.text()


@pytest.mark.parametrize(("norm", "positions", "tied"), SHAPES)
def test_causal_reference(norm, positions, tied):
    subject = reference_subject("causal language model", norm=norm, positions=positions, tied=tied)
    silent(diagnose(subject, slow=False), 20)


@pytest.mark.parametrize(("norm", "positions", "causal"), SHAPES)
def test_classifying_reference(norm, positions, causal):
    subject = reference_subject("classification", norm=norm, positions=positions, causal=causal)
    silent(diagnose(subject, slow=False), 20)


@pytest.mark.parametrize("kind", ["classification", "causal language model"])
def test_the_reference_with_the_checks_that_train(kind):
    subject = reference_subject(kind)
    found = diagnose(subject)
    assert not any("slow checks" in reason for reason in found.not_applicable())
    silent(found, 25)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers(name):
    make, task = FAMILIES[name]
    silent(diagnose(subjects_from(make, task=task), slow=False), 10)


def test_layers_of_torch():
    silent(diagnose(subject_from(TorchClassifier, task="classification"), slow=False), 8)


def test_a_model_by_hand():
    silent(diagnose(subject_from(NanoGPT, task="causal-lm"), slow=False), 10)
