"""Positions in models that count them in ways of their own, and the same models with a fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from companion.debugging import diagnose, subject_from, subjects_from

WORDS = 97
BERT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
DECODER = {**BERT, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BART: dict[str, Any] = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}


def maker(name, config, **sizes):
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**sizes))


opt = maker("OPTForCausalLM", "OPTConfig", **{**DECODER, "ffn_dim": 64, "word_embed_proj_dim": 32})
bart = maker("BartForConditionalGeneration", "BartConfig", **BART)
mpnet = maker(
    "MPNetForSequenceClassification", "MPNetConfig", **{**BERT, "max_position_embeddings": 66}, num_labels=3
)
roberta = maker(
    "RobertaForSequenceClassification",
    "RobertaConfig",
    **{**BERT, "max_position_embeddings": 66, "pad_token_id": 1},
)


def found(subject, *checks):
    """Return the statuses and problems of some checks, each by the check's name and its part's."""
    diagnosis = diagnose(subject, slow=False, only=checks)
    return [item.status for item in diagnosis.findings], {item.check: item for item in diagnosis.problems}


@pytest.mark.parametrize("make", [opt, mpnet, roberta])
def test_tables_that_count_the_places_themselves(make):
    task = "causal-lm" if make is opt else "classification"
    subject = subject_from(make, task=task)
    assert subject.max_length == 64
    checks = ("position rows", "position information", "places are unlike", "shapes")
    assert found(subject, *checks) == (["ok"] * 4, {})


def test_a_decoder_that_reads_another_text_too():
    statuses, problems = found(subjects_from(bart, task="seq2seq"), "position rows", "position information")
    assert statuses == ["ok"] * 4 and not problems


def test_one_row_for_all_places_is_found_where_a_module_counts_them():
    def stuck():
        model = opt()
        table = model.model.decoder.embed_positions
        table.forward = lambda mask, *args, **kwargs: functional.embedding(
            torch.full(mask.shape, 5), table.weight
        )
        return model

    _, problems = found(subject_from(stuck, task="causal-lm"), "position rows", "position information")
    assert problems["position rows"].where == "model.decoder.embed_positions"
    assert problems["position rows"].evidence["rows"] == 1 and "position information" in problems


def test_a_decoder_without_positions_is_found_beside_an_encoder_with_them():
    def broken():
        model = bart()
        table = model.model.decoder.embed_positions
        table.forward = lambda ids, *args, **kwargs: torch.zeros(1, ids.size(1), 32)
        return model

    _, problems = found(subjects_from(broken, task="seq2seq"), "position information")
    assert problems["position information"].where == "decoder: model.decoder.layers.0"


class Positioned(nn.Module):
    """Counts places from a first one; may keep rows up to a padding token's from them."""

    def __init__(self, rows: int, first: int, padding: int | None) -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig(vocab_size=WORDS, num_labels=3)
        self.config.max_position_embeddings = rows
        self.words, self.places = nn.Embedding(WORDS, 16), nn.Embedding(rows, 16, padding_idx=padding)
        self.first, self.head = first, nn.Linear(16, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(self.first, self.first + input_ids.size(1))
        return self.head((self.words(input_ids) + self.places(places)).tanh().mean(1))


@pytest.mark.parametrize(("first", "padding", "right"), [(0, None, True), (2, 1, True), (1, None, False)])
def test_a_table_that_is_one_row_short_is_found_and_one_that_keeps_rows_is_not(first, padding, right):
    subject = subject_from(lambda: Positioned(40, first, padding), task="classification")
    _, problems = found(subject, "shapes")
    assert ("shapes" not in problems) == right


class Head(nn.Module):
    """One head of attention to what came before, without positions."""

    def __init__(self, width: int, of_head: int) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(width, of_head, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).mT * self.key.out_features**-0.5
        past = torch.ones(x.size(1), x.size(1)).tril() == 0
        return scores.masked_fill(past, float("-inf")).softmax(-1) @ self.value(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(width, width // heads) for _ in range(heads))
        self.proj, self.ln1, self.ln2 = nn.Linear(width, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(torch.cat([head(self.ln1(x)) for head in self.heads], -1))
        return x + self.net(self.ln2(x))


class CharGPT(nn.Module):
    """Flattens its scores when it is told the targets, as a well-known lecture does."""

    def __init__(self, blocks: int = 2, *, places: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.position_table = nn.Embedding(32, 32) if places else None
        self.blocks = nn.Sequential(*(Block(32, 4) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, WORDS)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.words(idx)
        if self.position_table is not None:
            x = x + self.position_table(torch.arange(idx.size(1)))
        logits = self.head(self.norm(self.blocks(x)))
        if targets is None:
            return logits, None
        logits = logits.flatten(0, 1)
        return logits, functional.cross_entropy(logits, targets.flatten())


def test_scores_that_are_flattened_when_targets_are_told():
    ids = torch.randint(0, WORDS, (4, 13))
    subject = subject_from(CharGPT, task="causal-lm", batches=[(ids[:, :-1], ids[:, 1:])])
    assert subject.scores(subject.model(), ids, None).shape == (4, 13, WORDS)
    statuses, _ = found(subject, "shapes", "causality", "order matters", "position rows", "initial loss")
    assert "problem" not in statuses and statuses.count("ok") >= 4


def test_a_decoder_can_do_without_positions_if_its_scores_know_the_order():
    assert found(subject_from(lambda: CharGPT(places=False), task="causal-lm"), "order matters") == (
        ["ok"],
        {},
    )
    _, problems = found(subject_from(lambda: CharGPT(1, places=False), task="causal-lm"), "order matters")
    assert problems  # one block takes a mean over the words before, in any order


def test_tables_of_zeros_are_left_to_the_check_of_fresh_weights():
    def zeros():
        model = CharGPT()
        nn.init.zeros_(model.words.weight)
        nn.init.zeros_(model.position_table.weight)
        return model

    finding = diagnose(subject_from(zeros, task="causal-lm"), only=["places are unlike"]).findings[0]
    assert finding.status == "not applicable" and "not told apart" in finding.summary
