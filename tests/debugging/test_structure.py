"""Checks of structure and of blocks find what is planted, and leave right models alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from correct_models import VOCABULARY, AliBiTagger, EncoderClassifier, SmallGPT, others
from planted import planted
from torch import nn
from transformers import AlbertConfig, AlbertForMaskedLM

from companion.debugging.checks import blocks, places, structure
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

CHECKS = [
    structure.weight_tying,
    structure.registered_parameters,
    structure.layer_count,
    structure.layer_distinctness,
    structure.parameter_dtypes,
    blocks.residual_path,
    blocks.token_separation,
    blocks.normalisation_effect,
    blocks.feed_forward_nonlinearity,
    places.position_rows,
    places.position_information,
]
TIE = "self.head.weight = self.tokens.weight"
LIST = "self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))"
PRE_ATTENTION = "x = x + self.dropout(self.attention(self.attention_norm(x), visible, turns, cache))"
PRE_FEED_FORWARD = "return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))"
POST_FEED_FORWARD = "return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))"
ROWS = "x = x + self.positions(places)"
NORM = """class LayerNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centred = x - x.mean(AXIS, keepdim=True)
        return centred / (x.var(AXIS, keepdim=True, unbiased=False) + 1e-5)ROOT * self.weight + self.bias


class Attention(nn.Module):"""


def norm(axis: str = "-1", root: str = ".sqrt()") -> list[tuple[str, str]]:
    own = NORM.replace("AXIS", axis).replace("ROOT", root)
    return [("nn.LayerNorm", "LayerNorm"), ("class Attention(nn.Module):", own)]


FAULTS = {
    "copied head": (
        structure.weight_tying,
        [(TIE, "self.head.weight = nn.Parameter(self.tokens.weight.clone())")],
    ),
    "untied": (structure.weight_tying, [(TIE, "pass")]),
    "plain list": (
        structure.registered_parameters,
        [
            (
                "nn.ModuleList(Block(config, layer) for layer in range(config.layers))",
                "[Block(config, layer) for layer in range(config.layers)]",
            )
        ],
    ),
    "plain dict": (
        structure.registered_parameters,
        [
            ("self.feed_forward = FeedForward(config)", "self.parts = {'feed_forward': FeedForward(config)}"),
            ("self.feed_forward(", "self.parts['feed_forward']("),
        ],
    ),
    "plain tensor": (
        structure.registered_parameters,
        [
            (
                "self.positions = nn.Embedding(config.max_length, config.width)",
                "self.rows = torch.randn(config.max_length, config.width, requires_grad=True)",
            ),
            (ROWS, "x = x + self.rows[places]"),
        ],
    ),
    "one too few": (structure.layer_count, [("for block in self.blocks:", "for block in self.blocks[:1]:")]),
    "times n": (
        structure.layer_distinctness,
        [(LIST, "self.blocks = nn.ModuleList([Block(config, 0)] * config.layers)")],
    ),
    "copies": (
        structure.layer_distinctness,
        [
            (
                "self.reset_parameters()\n",
                "self.reset_parameters()\n        import copy\n"
                "        self.blocks = nn.ModuleList(copy.deepcopy(self.blocks[0]) for _ in self.blocks)\n",
            )
        ],
    ),
    "norm in half": (
        structure.parameter_dtypes,
        [
            (
                "self.reset_parameters()\n",
                "self.reset_parameters()\n        self.blocks[0].attention_norm.half()\n",
            )
        ],
    ),
    "attention residual": (blocks.residual_path, [(PRE_ATTENTION, PRE_ATTENTION.replace("x + ", ""))]),
    "feed-forward residual": (
        blocks.residual_path,
        [(PRE_FEED_FORWARD, PRE_FEED_FORWARD.replace("x + ", ""))],
    ),
    "norm over time": (blocks.token_separation, norm("1")),
    "norm over the batch": (blocks.token_separation, norm("0")),
    "norm over text": (blocks.token_separation, norm("(1, 2)")),
    "variance without root": (blocks.normalisation_effect, norm(root="")),
    "no activation": (
        blocks.feed_forward_nonlinearity,
        [("self.activation(self.expand(x))", "self.expand(x)")],
    ),
    "identity": (blocks.feed_forward_nonlinearity, [('"gelu": nn.GELU()', '"gelu": nn.Identity()')]),
    "one row": (places.position_rows, [(ROWS, "x = x + self.positions(places * 0)")]),
    "detached rows": (places.position_rows, [(ROWS, "x = x + self.positions(places).detach()")]),
    "rows repeat": (places.position_rows, [(ROWS, "x = x + self.positions(places % 16)")]),
    "no positions": (places.position_information, [(ROWS, "pass")]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    check, edits = FAULTS[name]
    finding = check(planted(*edits))
    assert finding.is_problem and finding.where and finding.why and finding.fix, finding.summary
    assert not finding.summary.startswith("it raised"), finding.summary


def test_the_lost_residual_is_placed():
    said = [
        blocks.residual_path(planted(*FAULTS[f"{part} residual"][1])).summary
        for part in ("attention", "feed-forward")
    ]
    assert "of the attention is missing" in said[0] and "of the feed-forward part is missing" in said[1]
    post = (POST_FEED_FORWARD, POST_FEED_FORWARD.replace("x + ", ""))
    assert blocks.residual_path(planted(post, norm="post")).is_problem


def test_a_right_norm_of_ones_own_is_left_alone():
    for check in (blocks.token_separation, blocks.normalisation_effect):
        assert check(planted(*norm())).status == "ok"


def test_unregistered_blocks_are_named():
    finding = structure.registered_parameters(planted(*FAULTS["plain list"][1]))
    assert finding.where.startswith("blocks[0].") or finding.where.startswith("blocks[1].")


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_positions_that_stand_still_are_found(positions):
    edit = (
        "places = (attention_mask.long().cumsum(dim=1) - 1)",
        "places = 0 * (attention_mask.long().cumsum(dim=1) - 1)",
    )
    for kind in ("classification", "causal language model"):
        assert places.position_information(planted(edit, kind=kind, positions=positions)).is_problem


def test_other_peoples_models_with_a_fault():
    def shared() -> nn.Module:
        model = AliBiTagger()
        model.layers = nn.ModuleList([model.layers[0]] * 3)
        return model

    def straight() -> nn.Module:
        model = EncoderClassifier(True)
        for layer in model.encoder.layers:
            layer.activation = nn.Identity()
        return model

    def flat() -> nn.Module:
        model = EncoderClassifier(False)
        model.pos = nn.Parameter(torch.zeros(1, 32, 32), requires_grad=False)
        return model

    def untied() -> nn.Module:
        model = SmallGPT()
        model.lm_head.weight = nn.Parameter(copy.deepcopy(model.lm_head.weight.data))
        return model

    tagger = Subject(shared, "masked language model", VOCABULARY, max_length=32)
    assert structure.layer_distinctness(tagger).is_problem
    classifier = Subject(straight, "classification", VOCABULARY, classes=3, max_length=32)
    assert blocks.feed_forward_nonlinearity(classifier).is_problem
    assert structure.weight_tying(replace(tagger, make_model=untied, kind="causal language model")).is_problem


def test_layers_may_be_shared_when_the_config_says_so():
    config = AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    subject = Subject(lambda: AlbertForMaskedLM(config), "masked language model", VOCABULARY, max_length=32)
    said = [check(subject) for check in CHECKS]
    assert not [finding.summary for finding in said if finding.is_problem]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_no_right_model_is_an_alarm(check):
    made = others()
    made |= {
        f"{norm} {positions}": reference_subject(kind, norm=norm, positions=positions, tied=norm == "pre")
        for kind, norm in (("classification", "post"), ("causal language model", "pre"))
        for positions in ("learned", "sinusoidal", "rotary")
    }
    said = {name: check(subject) for name, subject in made.items()}
    assert not {name: finding.summary for name, finding in said.items() if finding.is_problem}
    assert sum(finding.status == "ok" for finding in said.values()) >= 4


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_model_of_one_matrix_raises_no_alarm(check):
    model = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 30))
    finding = check(Subject(lambda: model, "masked language model", 30))
    assert finding.status == (
        "ok"
        if check in (structure.registered_parameters, structure.parameter_dtypes, structure.weight_tying)
        else "not applicable"
    )
