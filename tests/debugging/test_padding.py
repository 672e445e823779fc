"""Checks of padding find planted faults, and leave right models alone."""

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

from companion.debugging.checks import masks, padding
from companion.debugging.checks.registry import CHECKS
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject
from companion.models import transformer

CAUSAL, CLASSES = "causal language model", "classification"
MINE = [found for found in CHECKS.values() if inspect.getmodule(found.function) in (padding, masks)]
NORM = """

class OtherNorm(nn.Module):
    def forward(self, x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True, unbiased=False) + 1e-5)
"""


edited = partial(planted.edited, more=NORM)


def problems(subject: Subject) -> dict[str, object]:
    findings = [found(subject) for found in MINE]
    return {finding.check: finding for finding in findings if finding.is_problem}


FILL = "scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)"
DROP = "weights = self.dropout(self.softmax(scores))"
SEEN = "visible = attention_mask.bool()"
NORMED = "self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)"
PLACES = "(attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -new:]"
FROM_THE_EDGE = "torch.arange(input_ids.size(1)).expand(len(input_ids), -1)"
IGNORED = (SEEN, "visible = torch.ones_like(attention_mask).bool()")
AFTER = (FILL + "\n        " + DROP, "weights = self.dropout(self.softmax(scores) * visible)")
PLANTED = [
    (CLASSES, IGNORED, {"padding content", "padding amount"}, "attention"),
    (CLASSES, (SEEN, "visible = ~attention_mask.bool()"), {"mask polarity"}, "attention"),
    (CAUSAL, (SEEN, "visible = ~attention_mask.bool()"), {"mask polarity"}, "attention"),
    (CLASSES, (FILL, "scores = scores + visible"), {"padding content", "padding amount"}, "attention"),
    (CLASSES, (FILL, "scores = scores * visible"), {"padding content", "padding amount"}, "attention"),
    (CLASSES, AFTER, {"padding content", "padding amount"}, "attention"),
    (CLASSES, ("nn.Softmax(dim=-1)", "nn.Softmax(dim=-2)"), {"padding amount"}, "attention"),
    (
        CLASSES,
        ("x.unflatten(-1, (self.heads, -1)).transpose(1, 2)", "x.reshape(len(x), self.heads, x.size(1), -1)"),
        {"padding content", "padding amount"},
        "attention",
    ),
    (
        CLASSES,
        ("x.transpose(1, 2).flatten(2)", "x.reshape(len(x), x.size(2), -1)"),
        {"padding amount"},
        "attention",
    ),
    (CLASSES, (NORMED, "self.attention_norm = OtherNorm()"), {"padding content"}, "normalisation"),
    (CLASSES, (NORMED, "self.attention_norm = OtherNorm()"), {"padding amount"}, "normalisation"),
    (
        CAUSAL,
        (FILL, FILL.replace("torch.finfo(scores.dtype).min", "-torch.inf")),
        {"left padding"},
        "attention",
    ),
    (
        CLASSES,
        ("input_ids.new_ones(len", "input_ids.new_zeros(len"),
        {"mask of ones is no mask"},
        "attention",
    ),
    (CAUSAL, (FILL, "scores = scores + visible"), {"padding content"}, "attention"),
]


@pytest.mark.parametrize(("kind", "edit", "names", "component"), PLANTED)
def test_a_planted_fault_is_found(kind, edit, names, component):
    subject = reference_subject(kind, transformer=edited(edit))
    for name in names:
        finding = CHECKS[name](subject)
        assert finding.is_problem, (name, finding.summary)
        assert component is None or finding.component == component
        assert finding.why
        assert finding.fix


def test_positions_from_the_edge_are_a_problem_where_padding_is_on_the_left():
    module = edited((PLACES, FROM_THE_EDGE))
    left = reference_subject(CAUSAL, transformer=module, settings={"pad_left": True})
    finding = padding.left_padding(left)
    assert (finding.status, finding.component) == ("problem", "positions")
    right = padding.left_padding(reference_subject(CAUSAL, transformer=module))
    assert right.status == "not applicable"
    assert "no batch is padded so" in right.summary
    turned = reference_subject(CAUSAL, transformer=module, settings={"pad_left": True}, positions="rotary")
    assert padding.left_padding(turned).status == "ok", "rotations tell distances alone"


def test_a_mask_that_nothing_listens_to_is_found():
    subject = reference_subject(CLASSES, transformer=edited(IGNORED, (PLACES, FROM_THE_EDGE)))
    assert {"padding content", "padding amount", "mask is used"} <= set(problems(subject))


def test_an_ignored_mask_is_no_problem_for_a_decoder_padded_on_the_right():
    module = edited(IGNORED, (PLACES, FROM_THE_EDGE))
    assert problems(reference_subject(CAUSAL, transformer=module)) == {}
    left = problems(reference_subject(CAUSAL, transformer=module, settings={"pad_left": True}))
    assert {"padding content", "mask is used", "left padding"} <= set(left)


def test_empty_texts_are_a_problem_where_there_are_some():
    module = edited((FILL, FILL.replace("torch.finfo(scores.dtype).min", "-torch.inf")))
    subject = reference_subject(CLASSES, transformer=module)
    assert padding.a_row_of_padding_is_harmless(subject).status == "not applicable"
    finding = padding.a_row_of_padding_is_harmless(replace(subject, encode=lambda text: []))
    assert finding.is_problem
    assert finding.evidence["finite"] == 0
    batch = {name: tensor.clone() for name, tensor in subject.batches[0].items()}
    batch["attention_mask"][2] = 0
    assert padding.a_row_of_padding_is_harmless(replace(subject, batches=[batch])).is_problem


def test_an_empty_text_that_spoils_the_others_is_always_a_problem():
    last = "        return self.head(hidden)"
    module = edited((last, last + " / attention_mask.float().sum(1).min()"))
    assert padding.a_row_of_padding_is_harmless(reference_subject(CLASSES, transformer=module)).is_problem


class Encoder(nn.Module):
    """Without a parameter for a mask."""

    def __init__(self):
        super().__init__()
        self.inner = transformer.Transformer(transformer.TransformerConfig(60, width=32, classes=2))

    def forward(self, input_ids):
        return self.inner(input_ids)


def test_a_model_without_a_mask_is_a_problem_where_batches_are_padded():
    subject = Subject(make_model=Encoder, kind=CLASSES, vocab_size=60, classes=2)
    assert all(found(subject).status == "not applicable" for found in MINE)
    ids = subject.ids(2, 9)
    mask = torch.ones_like(ids)
    assert problems(replace(subject, batches=[{"input_ids": ids, "attention_mask": mask}])) == {}
    mask = mask.clone()
    mask[0, 5:] = 0
    found = problems(replace(subject, batches=[{"input_ids": ids, "attention_mask": mask}]))
    assert set(found) == {"padding amount"}


SHAPES = [
    {"kind": kind, "norm": norm, "positions": positions}
    for kind, norm, positions in itertools.product((CAUSAL, CLASSES), ("pre", "post"), ("learned", "rotary"))
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_no_right_variant_of_the_reference_alarms(shape):
    assert problems(reference_subject(**shape)) == {}


def test_padding_on_the_left_does_not_alarm():
    for options in ({"kind": CAUSAL}, {"kind": CLASSES}, {"kind": CLASSES, "causal": True}):
        subject = reference_subject(**options, settings={"pad_left": True})
        assert problems(subject) == {}
        assert padding.left_padding(subject).status == "ok"


SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SMALL, "intermediate_size": 64}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def t5_scores(model, ids, mask):
    source = torch.arange(3, 9).expand(len(ids), -1)
    return model(input_ids=source, decoder_input_ids=ids, decoder_attention_mask=mask).logits


def t5_scores_without_mask(model, ids, mask):
    return t5_scores(model, ids, None)


class Torch(nn.Module):
    """An encoder of torch's own layers, whose mask has the opposite sense."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(60, 32), nn.Parameter(0.1 * torch.randn(40, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens, src_key_padding_mask=None):
        hidden = self.words(tokens) + self.places[: tokens.size(1)]
        return self.head(self.layers(hidden, src_key_padding_mask=src_key_padding_mask)[:, 0])


FAMILIES = {
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)), "masked language model", {}),
    "bert classifier": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)),
        CLASSES,
        {"classes": 2},
    ),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
        ),
        CLASSES,
        {"classes": 2},
    ),
    "roberta": (
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**BERT, max_position_embeddings=42)),
        CLASSES,
        {"classes": 2, "pad_token_id": 1},
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
    "t5 without its mask": (
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
        CAUSAL,
        {"scores": t5_scores_without_mask},
    ),
    "t5 encoder": (lambda: hf.T5EncoderModel(hf.T5Config(**T5)), "encoder", {}),
    "torch": (Torch, CLASSES, {"classes": 2}),
}


def family(name: str) -> Subject:
    make, kind, more = FAMILIES[name]
    return Subject(make_model=make, kind=kind, vocab_size=60, max_length=40, **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_other_family_alarms(name):
    assert problems(family(name)) == {}


def test_gpt2_is_right_when_it_is_told_its_positions():
    finding = padding.left_padding(family("gpt2"))
    assert finding.status == "ok"
    assert "with position_ids" in finding.summary


def test_a_function_that_keeps_the_mask_to_itself_is_not_the_models_fault():
    subject = reference_subject(CLASSES)
    deaf = replace(subject, scores=lambda model, ids, mask: model(ids))
    assert masks.mask_is_used(deaf).status == "not applicable"
    assert masks.mask_is_used(subject).status == "ok"
