"""Checks of behaviour find planted faults, and leave right models alone."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace
from functools import partial

import planted
import pytest
import torch
import transformers as hf
from torch import nn

from companion.debugging import recipe
from companion.debugging.checks import batches, behaviour, fresh, modes, outputs
from companion.debugging.checks.registry import CHECKS
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

CAUSAL, CLASSES = "causal language model", "classification"
MINE = [
    found
    for found in CHECKS.values()
    if inspect.getmodule(found.function) in (batches, behaviour, modes, outputs)
]
NORM = """

class OtherNorm(nn.Module):
    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        spread = x.std(self.axis, keepdim=True, unbiased=False)
        return (x - x.mean(self.axis, keepdim=True)) / (spread + 1e-5)
"""


edited = partial(planted.edited, more=NORM)


def problems(subject: Subject) -> dict[str, object]:
    findings = [found(subject) for found in MINE]
    return {finding.check: finding for finding in findings if finding.is_problem}


FILL = "scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)"
DROP = "weights = self.dropout(self.softmax(scores))"
FIRST = "self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)"
LAST = "        return self.head(hidden)"
PLANTED = [
    (CAUSAL, "visible = visible & torch.ones", "visible = visible | torch.ones", "causality", "attention"),
    (CAUSAL, ".tril()[-new:]", ".tril(1)[-new:]", "causality", "attention"),
    (CAUSAL, ".tril()[-new:]", ".tril(1)[-new:]", "prefixes give the same scores", "attention"),
    (CAUSAL, FILL, "scores = scores + visible", "causality", "attention"),
    (CAUSAL, FILL, "scores = scores * visible", "causality", "attention"),
    (
        CAUSAL,
        FILL + "\n        " + DROP,
        "weights = self.softmax(scores) * visible",
        "causality",
        "attention",
    ),
    (CAUSAL, "nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)", "causality", "attention"),
    (CAUSAL, "nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)", "prefixes give the same scores", "attention"),
    (
        CAUSAL,
        "x.unflatten(-1, (self.heads, -1)).transpose(1, 2)",
        "x.reshape(len(x), self.heads, x.size(1), -1)",
        "causality",
        "attention",
    ),
    (CAUSAL, "x.transpose(1, 2).flatten(2)", "x.reshape(len(x), x.size(2), -1)", "causality", "attention"),
    (CAUSAL, FIRST, "self.attention_norm = OtherNorm(1)", "causality", "normalisation"),
    (CAUSAL, FIRST, "self.attention_norm = OtherNorm(1)", "prefixes give the same scores", "normalisation"),
    (
        CAUSAL,
        "/ math.sqrt(query.size(-1))",
        "/ math.sqrt(key.size(-2))",
        "prefixes give the same scores",
        "attention",
    ),
    (
        CAUSAL,
        "x = x + self.dropout(self.attention(",
        "x = x + 0 * self.dropout(self.attention(",
        "the past is seen",
        "attention",
    ),
    (CAUSAL, "x = x + self.positions(places)", "x = x", "order matters", "positions"),
    (
        CAUSAL,
        "(attention_mask.long().cumsum(dim=1) - 1)",
        "(0 * attention_mask.long())",
        "order matters",
        "positions",
    ),
    (CLASSES, "x = x + self.positions(places)", "x = x", "order matters", "positions"),
    (
        CLASSES,
        "if self.config.causal:\n            visible",
        "if True:\n            visible",
        "both sides are seen",
        "attention",
    ),
    (CLASSES, FIRST, "self.attention_norm = OtherNorm(0)", "batch independence", "normalisation"),
    (CAUSAL, FIRST, "self.attention_norm = OtherNorm(0)", "batch independence", "normalisation"),
    (
        CLASSES,
        LAST,
        "        return self.head(hidden) + torch.arange(len(hidden))[:, None]",
        "batch order",
        None,
    ),
    (
        CLASSES,
        "x.transpose(1, 2).flatten(2)",
        "x.transpose(0, 2).reshape(x.size(0), x.size(2), -1)",
        "batch independence",
        "attention",
    ),
    (
        CLASSES,
        "nn.Embedding(config.max_length,",
        "nn.Embedding(config.max_length - 1,",
        "shapes",
        "positions",
    ),
    (CLASSES, "config.classes or config.vocab_size,", "config.classes + 1,", "shapes", "embeddings and head"),
    (CAUSAL, LAST, "        return self.head(hidden).transpose(0, 1)", "shapes", None),
    (CLASSES, LAST, "        return self.head(hidden).log()", "shapes", None),
    (CAUSAL, "        self.reset_parameters()\n", "", "initial loss", "layers"),
    (CLASSES, LAST, "        return 40 * self.head(hidden)", "initial loss", "embeddings and head"),
    (
        CLASSES,
        LAST,
        "        return self.head(hidden).softmax(-1)",
        "logits are not probabilities",
        "embeddings and head",
    ),
    (CAUSAL, LAST, "        return self.head(hidden).softmax(-1)", "logits are not probabilities", None),
    (CLASSES, LAST, "        return self.head(hidden).sigmoid()", "logits are not probabilities", None),
    (
        CLASSES,
        DROP,
        "weights = torch.dropout(self.softmax(scores), 0.1, True)",
        "eval determinism",
        "dropout",
    ),
    (
        CAUSAL,
        "nn.ModuleList(Block(config, layer) for layer in range(config.layers))",
        "[Block(config, layer) for layer in range(config.layers)]",
        "eval determinism",
        "dropout",
    ),
    (CLASSES, DROP, "weights = self.softmax(scores)", "dropout acts in training", "dropout"),
    (CAUSAL, "nn.Dropout(config.dropout)", "nn.Identity()", "dropout acts in training", "dropout"),
    (
        CLASSES,
        "past = cache.length if cache is not None else 0",
        "self.seen = self.training or getattr(self, 'seen', False)\n        past = 0",
        "switching modes changes nothing",
        "dropout",
    ),
    (CLASSES, FILL, f"if self.training:\n            {FILL}", "modes agree without dropout", "dropout"),
]


@pytest.mark.parametrize(("kind", "before", "after", "name", "component"), PLANTED)
def test_a_planted_fault_is_found(kind, before, after, name, component):
    edits = [(before, after)]
    if "self.seen" in after:
        edits.append((LAST, "        return self.head(hidden) * (2 if self.seen else 1)"))
    shape = {"norm": "post"} if "0 * self.dropout" in after else {}
    if shape:
        edits = [("x + self.dropout(self.attention(x,", "x + 0 * self.dropout(self.attention(x,")]
    finding = CHECKS[name](reference_subject(kind, transformer=edited(*edits), **shape))
    assert finding.is_problem, finding.summary
    assert component is None or finding.component == component
    assert finding.why
    assert finding.fix


def test_softmax_in_the_loss_is_told_from_softmax_in_the_model():
    loss = edited(("logits.flatten(0, -2), targets", "logits.softmax(-1).flatten(0, -2), targets"), of=recipe)
    for kind in (CAUSAL, CLASSES):
        finding = outputs.logits_are_not_probabilities(reference_subject(kind, recipe=loss))
        assert (finding.status, finding.component) == ("problem", "loss")


def test_log_probabilities_and_a_loss_that_knows_are_no_problem():
    logs = edited((LAST, "        return self.head(hidden).log_softmax(-1)"))
    assert outputs.logits_are_not_probabilities(reference_subject(CLASSES, transformer=logs)).status == "ok"
    shares = edited((LAST, "        return self.head(hidden).softmax(-1)"))
    knows = edited(("logits.flatten(0, -2), targets", "logits.log().flatten(0, -2), targets"), of=recipe)
    subject = reference_subject(CLASSES, transformer=shares, recipe=knows)
    assert outputs.logits_are_not_probabilities(subject).status == "ok"


SHAPES = [
    {"kind": kind, "norm": norm, "positions": positions, "tied": tied}
    for kind, norm, positions, tied in itertools.product(
        (CAUSAL, CLASSES), ("pre", "post"), ("learned", "sinusoidal", "rotary"), (True, False)
    )
    if tied or kind == CAUSAL
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_no_right_variant_of_the_reference_alarms(shape):
    assert problems(reference_subject(**shape)) == {}


def test_other_right_settings_do_not_alarm():
    assert problems(reference_subject(CLASSES, causal=True)) == {}
    assert problems(reference_subject(CLASSES, dropout=0.0, activation="relu")) == {}
    assert problems(reference_subject(CAUSAL, settings={"pad_left": True})) == {}


SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SMALL, "intermediate_size": 64}
DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def t5_scores(model, ids, mask):
    source = torch.arange(3, 9).expand(len(ids), -1)
    return model(input_ids=source, decoder_input_ids=ids, decoder_attention_mask=mask).logits


FAMILIES = {
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)), "masked language model", {}),
    "bert classifier": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT, num_labels=3)),
        CLASSES,
        {"classes": 3},
    ),
    "bert encoder": (lambda: hf.BertModel(hf.BertConfig(**BERT)), "encoder", {}),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**DISTIL)),
        CLASSES,
        {"classes": 2},
    ),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)), CAUSAL, {}),
    "gpt2 classifier": (
        lambda: hf.GPT2ForSequenceClassification(hf.GPT2Config(**GPT2, pad_token_id=0)),
        CLASSES,
        {"classes": 2},
    ),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**BERT, num_key_value_heads=2)), CAUSAL, {}),
    "opt": (
        lambda: hf.OPTForCausalLM(
            hf.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=40)
        ),
        CAUSAL,
        {"pad_token_id": 1},
    ),
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), CAUSAL, {"scores": t5_scores}),
    "t5 untied": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, tie_word_embeddings=False)),
        CAUSAL,
        {"scores": t5_scores},
    ),
    "t5 encoder": (lambda: hf.T5EncoderModel(hf.T5Config(**T5)), "encoder", {}),
}


def family(name: str) -> Subject:
    make, kind, more = FAMILIES[name]
    return Subject(make_model=make, kind=kind, vocab_size=60, max_length=40, **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_hugging_face_family_alarms(name):
    assert problems(family(name)) == {}


def test_checks_say_where_they_cannot_tell():
    classifier, decoder = reference_subject(CLASSES), reference_subject(CAUSAL)
    for name in ("causality", "the past is seen", "prefixes give the same scores"):
        assert CHECKS[name](classifier).status == "not applicable"
    assert behaviour.both_sides_are_seen(decoder).status == "not applicable"
    assert fresh.initial_loss(replace(decoder, fresh=False)).summary == "the model is trained"
    assert outputs.logits_are_not_probabilities(replace(decoder, loss=None)).status == "not applicable"
    assert modes.dropout_acts_in_training(reference_subject(CAUSAL, dropout=0.0)).status == "not applicable"
    short = replace(classifier, max_length=8)
    assert batches.batch_independence(short).status == "not applicable"


def test_a_model_that_says_the_same_of_all_is_not_passed():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

        def forward(self, input_ids):
            return self.bias.expand(len(input_ids), -1)

    subject = Subject(make_model=Deaf, kind=CLASSES, vocab_size=60, classes=2)
    for name in ("batch independence", "batch order", "order matters"):
        assert CHECKS[name](subject).status == "not applicable"


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    problems(reference_subject(CLASSES))
    assert torch.equal(torch.rand(4), expected)
