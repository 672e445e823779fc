"""Gradient checks find weights that nothing reaches, and know which ones need none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from correct_models import others
from planted import planted
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from companion.debugging.checks.gradients import dead_units, frozen_parameters, gradient_flow
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

FAULTS = {
    "normalisation": [("self.final_norm(x)", "x")],
    "feed-forward": [
        (
            "self.contract(self.activation(self.expand(x)))",
            "self.contract(self.activation(self.expand(x))).detach()",
        )
    ],
    "positions": [("x = x + self.positions(places)", "x = x + self.positions(places).detach()")],
    "attention": [("self.split_heads(self.query(x))", "self.split_heads(self.query(x).detach())")],
}


@pytest.mark.parametrize("component", FAULTS)
def test_a_weight_without_gradient_is_found_and_placed(component):
    finding = gradient_flow(planted(*FAULTS[component]))
    assert finding.is_problem and finding.component == component, finding


def test_a_loss_without_gradient_is_found():
    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return model(batch["input_ids"]).mean()

    finding = gradient_flow(replace(reference_subject("classification"), loss=loss))
    assert finding.is_problem and finding.component == "loss"


def test_gradients_that_are_not_finite_are_found():
    edit = ("return self.head(hidden)", "return self.head(hidden) + (self.head.bias - self.head.bias).sqrt()")
    finding = gradient_flow(planted(edit, kind="classification"))
    assert finding.is_problem and finding.evidence["not finite"] > 0


def test_units_that_are_never_on_are_found():
    edit = (
        "self.reset_parameters()\n",
        "self.reset_parameters()\n        nn.init.constant_(self.blocks[1].feed_forward.expand.bias, -5.0)\n",
    )
    finding = dead_units(planted(edit, activation="relu"))
    assert (
        finding.is_problem
        and finding.where == "blocks.1.feed_forward.expand"
        and finding.evidence["dead"] == 1
    )
    assert dead_units(reference_subject("classification", activation="relu")).status == "ok"
    assert dead_units(reference_subject("classification")).status == "not applicable"


class FirstToken(nn.Module):
    """A classifier that looks at the first token alone, which is the same in all texts."""

    def __init__(self, bias: float = 0.0, dead: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 32)
        self.widen, self.classify = nn.Linear(32, 128), nn.Linear(128, 3)
        nn.init.constant_(self.widen.bias, bias)
        self.widen.bias.data[: round(128 * dead)] = -50.0

    def forward(self, input_ids):
        return self.classify(self.widen(self.words(input_ids[:, 0])).relu())


def first_token(rows: int, *, alike: bool = True, **options) -> Subject:
    ids = torch.arange(5 * rows).view(rows, 5) % 39
    if alike:
        ids[:, 0] = 39
    batches = [{"input_ids": part} for part in ids.split(8)]
    return Subject(
        lambda: FirstToken(**options), "classification", 40, classes=3, max_length=8, batches=batches
    )


def test_units_that_are_off_because_all_vectors_are_alike_are_no_alarm():
    finding = dead_units(first_token(80))
    assert finding.status == "ok", finding.summary
    # With one vector, each unit is always on or always off, and chance gives as many of both.
    assert finding.evidence["dead"] > 0.3 and finding.evidence["always on"] > 0.3
    assert finding.evidence["vectors"] == 64
    few = dead_units(first_token(8))
    assert few.status == "not applicable" and "8 vectors" in few.summary


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("options", [{"bias": -50.0}, {"dead": 0.7}])
def test_dead_units_are_found_among_vectors_alike_and_different(alike, options):
    finding = dead_units(first_token(80, alike=alike, **options))
    assert finding.is_problem and finding.where == "widen", finding.summary


def test_a_fresh_distilbert_in_batches_has_no_dead_units():
    config = DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=32
    )
    rows = torch.randint(3, 60, (64, 12), generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 2
    subject = Subject(
        lambda: DistilBertForSequenceClassification(config),
        "classification",
        60,
        classes=2,
        max_length=32,
        batches=[{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(8)],
    )
    for seed in range(3):
        made = replace(subject, make_model=lambda seed=seed: drawn(config, seed))
        assert not dead_units(made).is_problem


def drawn(config, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return DistilBertForSequenceClassification(config)


class Adapted(nn.Module):
    """A frozen matrix, and beside it two narrow ones that are trained, under names of their own."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(base.in_features, rank))
        self.up = nn.Parameter(torch.zeros(rank, base.out_features))

    def forward(self, x):
        return self.base(x) + x @ self.down @ self.up


def adapted(rank: int) -> Subject:
    subject = reference_subject("classification")

    def make() -> nn.Module:
        model = subject.make_model().requires_grad_(False)
        for block in model.blocks:
            block.attention.query = Adapted(block.attention.query, rank)
        return model

    return replace(subject, make_model=make)


def test_narrow_matrices_beside_frozen_ones_are_adapters_whatever_their_names():
    finding = frozen_parameters(adapted(4))
    assert finding.status == "not applicable" and "adapters" in finding.summary
    assert frozen_parameters(adapted(32)).is_problem


def test_a_block_that_is_partly_frozen_is_found_and_whole_ones_are_not():
    start = "self.reset_parameters()\n"
    partly = (start, start + "        self.blocks[0].feed_forward.expand.weight.requires_grad_(False)\n")
    whole = (start, start + "        self.blocks[0].requires_grad_(False)\n")
    finding = frozen_parameters(planted(partly))
    assert finding.is_problem and finding.where == "blocks.0.feed_forward.expand.weight"
    assert frozen_parameters(planted(whole)).status == "ok"
    assert (
        frozen_parameters(Subject(lambda: nn.Linear(2, 2).requires_grad_(False), "encoder", 9)).status
        == "not applicable"
    )


@pytest.mark.parametrize(
    "check", [gradient_flow, dead_units, frozen_parameters], ids=lambda check: check.name
)
def test_no_right_model_is_an_alarm(check):
    made = others()
    made |= {
        f"{kind} {norm} {positions}": reference_subject(kind, norm=norm, positions=positions)
        for kind, norm in (("classification", "post"), ("causal language model", "pre"))
        for positions in ("learned", "sinusoidal", "rotary")
    }
    said = {name: check(subject) for name, subject in made.items()}
    assert not {
        name: (finding.summary, finding.where) for name, finding in said.items() if finding.is_problem
    }
    assert sum(finding.status == "ok" for finding in said.values()) >= 3
