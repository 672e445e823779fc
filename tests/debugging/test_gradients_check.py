"""Gradient checks find weights that nothing reaches, and know which ones need none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from correct_models import others
from planted import planted
from torch import nn

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
