"""Checks that were written for what the first ones let through: each finds its fault, and only that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from companion.debugging import load_checks
from companion.debugging.subject import Subject
from companion.debugging.zoo import named
from companion.debugging.zoo.editing import subject_of
from companion.debugging.zoo.subjects import reference_subject

CHECKS = load_checks()
LM = "causal language model"
FAULTS = {
    "dropout comes after softmax": "dropout-before-softmax",
    "dropout rates": "dropout-keeps-its-rate",
    "places are unlike": "one-frequency",
    "named activation": "wrong-gelu",
    "small changes count": "norm-in-bfloat16",
    "fresh weights differ": "weights-zero",
    "decay is proportional": "adam-with-l2",
    "adam settings": "adam-without-bias-correction",
    "token ids": "word-numbers-collide",
}


def bert(**changes) -> Subject:
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        **changes,
    )
    return Subject(lambda: BertForMaskedLM(config), "masked language model", vocab_size=60, max_length=64)


@pytest.mark.parametrize(("check", "bug"), FAULTS.items())
def test_the_fault_is_found_and_placed(check, bug):
    found = CHECKS[check](subject_of(named(bug)))
    assert found.is_problem, found.summary
    assert found.component == named(bug).component
    assert found.why and found.fix


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_right_models_give_no_alarm(norm, positions):
    subject = reference_subject(LM, norm=norm, positions=positions)
    for check in FAULTS:
        found = CHECKS[check](subject)
        assert not found.is_problem, found.summary


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
def test_other_peoples_activations_are_what_their_configs_say(act):
    assert CHECKS["named activation"](bert(hidden_act=act)).status == "ok"


def test_bert_gives_no_alarm():
    for check in (
        "small changes count",
        "places are unlike",
        "dropout comes after softmax",
    ):
        assert CHECKS[check](bert()).status == "ok", check


def test_a_rate_at_which_shorter_steps_get_further_is_too_high():
    found = CHECKS["learning rate"](subject_of(named("learning-rate-too-high")))
    assert found.is_problem and found.component == "optimizer"
    assert found.evidence["after 60 steps at 0.1x"] < found.evidence["after 60 steps at 1x"]


class Rounding(torch.nn.Module):
    """Rounds what comes out of a word table to 16 bits, though its weights have 32."""

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).bfloat16().to(self.table.weight.dtype)


def rounded() -> torch.nn.Module:
    model = bert().make_model()
    model.bert.embeddings.word_embeddings = Rounding(model.bert.embeddings.word_embeddings)
    return model


def test_rounding_anywhere_is_found():
    found = CHECKS["small changes count"](replace(bert(), make_model=rounded))
    assert found.is_problem, found.summary


@pytest.mark.parametrize(
    ("check", "change", "reason"),
    [
        ("dropout rates", {"dropout": 0.0}, "no dropout module"),
        ("dropout comes after softmax", {"dropout": 0.0}, "no attention was seen to drop"),
        ("places are unlike", {"positions": "rotary"}, "not told apart before the first block"),
    ],
)
def test_what_cannot_be_told_is_not_applicable(check, change, reason):
    found = CHECKS[check](reference_subject(LM, **change))
    assert found.status == "not applicable"
    assert reason in found.summary


def test_trained_models_may_have_any_weights():
    found = CHECKS["fresh weights differ"](replace(reference_subject(LM), fresh=False))
    assert found.status == "not applicable"


def test_sgd_decays_in_proportion():
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    assert CHECKS["decay is proportional"](replace(reference_subject(LM), make_optimizer=sgd)).status == "ok"
    found = CHECKS["adam settings"](replace(reference_subject(LM), make_optimizer=sgd))
    assert found.summary == "the optimizer is no Adam"
