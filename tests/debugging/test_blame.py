"""An error in the subject's own code is a problem of it; one in a check is none, and says where it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from companion.debugging.anatomy import observe
from companion.debugging.checks.registry import Check
from companion.debugging.finding import Finding
from companion.debugging.spying import NoDropout, watch
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

BERT = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=8,
)


def said(look, subject: Subject | None = None) -> Finding:
    made = Check("toy", "model", "layers", "?", (), False, 0.5, look)
    return made(subject or reference_subject("classification", layers=1))


def step_of(subject: Subject):
    model = subject.model()
    return watch(subject, model, subject.make_optimizer(model), subject.batches[:1])


# --- the check's own fault


def counts_nothing(subject):
    return max(len(name) for name in ())


def divides(subject):
    return 1 / sum(0 for _ in range(3))


def compares_unlike_shapes(subject):
    with NoDropout():
        return functional.cross_entropy(torch.zeros(2, 3), torch.zeros(4, dtype=torch.long))


def hooks_badly(subject):
    model = subject.model()
    model.register_forward_hook(lambda module, arguments, output: {}["logits"])
    return subject.scores(model, subject.ids(), None)


@pytest.mark.parametrize("look", [counts_nothing, divides, compares_unlike_shapes, hooks_badly])
def test_a_check_that_fails_by_itself_does_not_apply(look):
    finding = said(look)
    assert finding.status == "not applicable"
    assert f"the check itself failed in {__name__}, line " in finding.summary
    assert "Error: " in finding.summary


def test_a_part_of_the_package_that_fails_under_a_check_is_its_fault_too():
    def asks_for_nothing(subject):
        return subject.ids(rows=-1)

    finding = said(asks_for_nothing)
    assert finding.status == "not applicable" and "in companion.debugging.subject, line" in finding.summary


# --- the subject's


class Odd(nn.Module):
    """Its second matrix does not fit the first."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.narrow, self.wide = nn.Embedding(40, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, input_ids):
        return self.wide(self.narrow(self.words(input_ids)))


class InPlace(nn.Module):
    """Changes what its backward pass needs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 8)

    def forward(self, input_ids):
        x = self.words(input_ids).exp()
        return x.mul_(2)


def alone(make, **options) -> Subject:
    return Subject(make, "encoder", 40, max_length=8, **options)


def calls_it(subject):
    return subject.scores(subject.model(), subject.ids(), None)


def observes_it(subject):
    return observe(subject.model(), lambda model: subject.scores(model, subject.ids(), None))


def goes_back(subject):
    with NoDropout():
        calls_it(subject).sum().backward()


def takes_a_step(subject):
    return step_of(subject)


def too_long(subject):
    return subject.scores(subject.model(), torch.ones(1, 20, dtype=torch.long), None)


def stops(*arguments):
    raise RuntimeError("not today")


def torch_stops(model, optimizer, parts):
    functional.cross_entropy(model(parts[0]["input_ids"]), torch.tensor([7]))


@pytest.mark.parametrize(
    ("look", "subject"),
    [
        (calls_it, alone(stops)),
        (calls_it, alone(Odd)),
        (observes_it, alone(Odd)),
        # A layer of torch's own, and a model of a library, are the subject's code as well.
        (calls_it, alone(lambda: nn.Sequential(nn.Embedding(40, 8), nn.Linear(4, 2)))),
        (too_long, alone(lambda: BertForSequenceClassification(BERT))),
        (goes_back, alone(InPlace)),
        (takes_a_step, replace(reference_subject("classification", layers=1), train_step=stops)),
        # Torch raises it, under code that watches the step: it was the step that called.
        (takes_a_step, replace(reference_subject("classification", layers=1), train_step=torch_stops)),
        (calls_it, alone(lambda: nn.Embedding(40, 8), scores=stops)),
    ],
    ids=[
        "factory",
        "shapes",
        "watched",
        "layers of torch",
        "library",
        "backward",
        "step",
        "torch in a step",
        "scores",
    ],
)
def test_an_error_of_the_subject_is_a_problem(look, subject):
    finding = said(look, subject)
    assert finding.is_problem and finding.summary.startswith("it raised "), finding.summary


def test_a_model_whose_output_is_refused_is_a_problem():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(40, 8)

        def forward(self, input_ids):
            return self.words(input_ids).sum()

    finding = said(calls_it, alone(Flat))
    assert finding.is_problem and "the model returned ()" in finding.summary
