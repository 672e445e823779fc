"""Attention checks find what is planted, name it, and leave right attention alone."""

from __future__ import annotations

import pytest
import torch
from correct_models import VOCABULARY, EncoderClassifier, others
from planted import planted
from torch import nn

from companion.debugging.anatomy import attention_parts, observe
from companion.debugging.checks.attention import attention_comparison, attention_weights
from companion.debugging.checks.attention_dropouts import attention_dropout
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

CHECKS = [attention_comparison, attention_weights, attention_dropout]
SCALE = "query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))"
MASK = "scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)"
WEIGHTS = "weights = self.dropout(self.softmax(scores))"
MERGE = "return x.transpose(1, 2).flatten(2)"
SPLIT = "return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)"
CAUSAL = "visible = visible & torch.ones(seq, seq, dtype=torch.bool, device=visible.device).tril()[-new:]"
FAULTS = {
    "not scaled": [(SCALE, "query @ key.transpose(-2, -1)")],
    "root of the model's width": [
        (SCALE, "query @ key.transpose(-2, -1) / math.sqrt(query.size(-1) * self.heads)")
    ],
    "not by its root": [(SCALE, "query @ key.transpose(-2, -1) / query.size(-1)")],
    "over the queries": [("nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)")],
    "over the heads": [("nn.Softmax(dim=-1)", "nn.Softmax(dim=1)")],
    "merged without the transpose": [(MERGE, "return x.reshape(x.size(0), x.size(2), -1)")],
    "split by view": [(SPLIT, "return x.reshape(x.size(0), self.heads, x.size(1), -1)")],
    "is never called": [("self.split_heads(self.value(x))", "self.split_heads(self.key(x))")],
    "key projection": [("weights @ value", "weights @ key")],
    "nothing is masked|future is not masked": [(CAUSAL, "pass")],
    "sees the next": [(CAUSAL, CAUSAL.replace(".tril()", ".tril(1)"))],
    "hides the token itself": [(CAUSAL, CAUSAL.replace(".tril()", ".tril(-1)"))],
    "after the softmax": [(MASK, ""), (WEIGHTS, WEIGHTS + " * visible")],
    "multiplied by the mask": [(MASK, "scores = scores * visible")],
    "added to the scores": [(MASK, "scores = scores + visible")],
    "inverted": [("masked_fill(~visible", "masked_fill(visible")],
}


@pytest.mark.parametrize("named", FAULTS)
def test_a_fault_is_found_and_named(named):
    finding = attention_comparison(planted(*FAULTS[named]))
    assert finding.is_problem, finding.summary
    assert any(name in finding.summary for name in named.split("|")), finding.summary
    assert "blocks.0.attention" in finding.where and finding.component == "attention"


@pytest.mark.parametrize("named", ["not scaled", "over the queries", "merged without the transpose"])
def test_a_fault_is_found_under_rotary_positions(named):
    finding = attention_comparison(planted(*FAULTS[named], positions="rotary"))
    assert finding.is_problem and named in finding.summary


def test_values_that_turn_are_found():
    turn = ("query, key = rotate(query, turns), rotate(key, turns)",) * 2
    more = turn[1] + "; value = rotate(value, turns)"
    finding = attention_comparison(planted((turn[0], more), positions="rotary"))
    assert finding.is_problem and "values turn" in finding.summary


def test_ignored_padding_is_found_in_an_encoder_and_is_nothing_in_a_decoder():
    edit = ("visible = attention_mask.bool()", "visible = torch.ones_like(attention_mask).bool()")
    finding = attention_comparison(planted(edit, kind="classification"))
    assert finding.is_problem and "masked" in finding.summary
    assert attention_comparison(planted(edit)).status == "ok"


def test_weights_that_do_not_sum_to_one_are_found_whatever_the_scores_are():
    bias = "place = torch.arange(scores.size(-1)); scores = scores - 0.3 * (place[:, None] - place).abs()\n"
    right = planted((MASK, bias + "        " + MASK))
    assert attention_comparison(right).status == "not applicable"
    assert attention_weights(right).status == "ok"
    for edit in (
        (WEIGHTS, WEIGHTS + " * 1.5"),
        ("nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)"),
        (MERGE, FAULTS["merged without the transpose"][0][1]),
    ):
        finding = attention_weights(planted((MASK, bias + "        " + MASK), edit))
        assert finding.is_problem and finding.where.startswith("blocks."), finding.summary


def test_attention_without_its_dropout_is_found():
    finding = attention_dropout(planted((WEIGHTS, "weights = self.softmax(scores)"), kind="classification"))
    assert finding.is_problem and finding.component == "dropout" and finding.evidence["rate"] == 0.1
    assert attention_dropout(reference_subject("classification", dropout=0.0)).status == "not applicable"


def test_attention_across_the_batch_is_found():
    def make() -> nn.Module:
        model = EncoderClassifier(True)
        for layer in model.encoder.layers:
            layer.self_attn.batch_first = False
        return model

    subject = Subject(
        make_model=make,
        kind="classification",
        vocab_size=VOCABULARY,
        classes=3,
        max_length=32,
        scores=lambda model, ids, _: model(ids),
    )
    finding = attention_comparison(subject)
    assert finding.is_problem and "attend to each other" in finding.summary


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_no_model_of_other_people_is_an_alarm(check):
    said = {name: check(subject) for name, subject in others().items()}
    assert not {name: finding.summary for name, finding in said.items() if finding.is_problem}
    assert sum(finding.status == "ok" for finding in said.values()) >= 8


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_model_without_attention_is_not_applicable(check):
    model = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 30))
    assert check(Subject(lambda: model, "masked language model", 30)).status == "not applicable"


def test_projections_without_telling_names_are_found_by_what_they_take():
    source = [
        (f"self.{old} =", f"self.{new} =") for old, new in (("query", "a1"), ("key", "a2"), ("value", "a3"))
    ]
    source += [
        (f"self.{old}(x)", f"self.{new}(x)") for old, new in (("query", "a1"), ("key", "a2"), ("value", "a3"))
    ]
    subject = planted(*source)
    model, ids = subject.model(jitter=True), subject.ids()
    parts = attention_parts(model, observe(model, lambda it: it(ids)))
    assert [part.output_name for part in parts] == ["blocks.0.attention.output", "blocks.1.attention.output"]
    assert not parts[0].named and parts[0].heads == (4,) and parts[0].query.shape == (*ids.shape, 32)
    assert attention_comparison(subject).status == "ok"
    assert attention_comparison(planted(*source, (SCALE, "query @ key.transpose(-2, -1)"))).is_problem


def test_looking_changes_nothing():
    subject = reference_subject("classification")
    model = subject.model()
    subject = Subject(lambda: model, "classification", subject.vocab_size, classes=2, max_length=64)
    state = torch.get_rng_state()
    attention_parts(model, observe(model, lambda it: it(subject.ids())))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
