"""Controls: what cannot be learned is not, what can be is; evaluations count; batches keep their rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from companion.debugging.checks import collation, controls, counting, learning
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject
from companion.models import Transformer

LM = "causal language model"
TINY = {"width": 16, "layers": 1, "heads": 2}


class Unmasked(Transformer):
    """A decoder whose tokens see what comes after them."""

    def visibility(self, attention_mask, new):
        return torch.ones_like(super().visibility(attention_mask, new))


def config_of(subject):
    return subject.make_model().config


def test_random_tokens_are_learned_only_through_a_leak():
    right = reference_subject(LM, layers=1)
    assert controls.random_token_control(right).status == "ok"
    leaking = replace(right, make_model=lambda: Unmasked(config_of(right)))
    found = controls.random_token_control(leaking)
    assert found.is_problem, found.summary
    assert controls.random_token_control(reference_subject("classification")).status == "not applicable"


def test_random_labels_are_learned_only_through_a_leak():
    right = reference_subject("classification", **TINY)
    assert controls.label_shuffle_control(right).status == "ok"

    def leaking(rows):
        return right.collate([([3 + label, *ids[1:]], label) for ids, label in rows])

    assert controls.label_shuffle_control(replace(right, collate=leaking)).is_problem
    assert collation.labels_stay_out_of_the_input(replace(right, collate=leaking)).is_problem
    assert controls.label_shuffle_control(reference_subject(LM)).status == "not applicable"


def test_one_batch_is_learned_by_heart_unless_the_step_does_nothing():
    right = reference_subject("classification", **TINY)
    assert learning.overfit_one_batch(right).status == "ok"
    assert learning.overfit_one_batch(replace(right, train_step=lambda *_: None)).is_problem
    assert learning.overfit_one_batch(replace(right, batches=())).status == "not applicable"


class Scripted(nn.Module):
    """Its loss is what a function says of the steps taken so far; most of it may be frozen."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.steps = 0
        self.trained = nn.Parameter(torch.zeros(4))
        self.rest = nn.Parameter(torch.zeros(96), requires_grad=not frozen)


def scripted(losses, *, frozen=False):
    """Return a subject whose loss after so many steps, at a multiple of its learning rate, is given."""
    rates = {}

    def loss(model, batch):
        return torch.tensor(losses(model.steps, rates.get(id(model), 1.0)))

    def step(model, optimizer, parts):
        model.steps += 1
        rates[id(model)] = optimizer.param_groups[0]["lr"]
        taken.append(1)

    taken: list[int] = []
    subject = Subject(
        make_model=lambda: Scripted(frozen),
        kind="encoder",
        vocab_size=9,
        make_optimizer=lambda model: torch.optim.SGD([model.trained], lr=1.0),
        loss=loss,
        train_step=step,
        batches=[{"input_ids": torch.ones(8, 2, dtype=torch.long)}],
    )
    return subject, taken


@pytest.mark.parametrize(
    ("losses", "status", "steps"),
    [
        # Slow and right: each round gains nearly as much as the one before.
        (lambda step, rate: 4.8 * 0.998 ** (step * min(rate, 1)), "not applicable", 180),
        # It begins late.
        (lambda step, rate: 4.8 - max(0.0, step - 30) ** 2 * 5e-4 * min(rate, 1), "not applicable", 180),
        # Long on a plateau, as a plain gradient is where all answers are alike.
        (lambda step, rate: (0.97 if step < 200 else 0.2) if step and rate == 1 else 1.1, "ok", 180 + 140),
        # Nothing moves.
        (lambda step, rate: 4.8, "problem", 180),
        # It settles high.
        (lambda step, rate: 3.8 + 0.5**step, "problem", 180 + 180),
        (lambda step, rate: 5.4 + 0.6 * 0.2 ** (step / 20), "problem", 180 + 180),
        # It falls, and climbs back, at the highest of the rates.
        (lambda step, rate: (2.0 if step == 20 else 9.0) if rate > 1 else 4.8, "ok", 120),
        (lambda step, rate: math.nan, "problem", 180),
    ],
    ids=["slow", "late", "plateau", "still", "high", "bounded", "once", "nan"],
)
def test_a_loss_that_still_falls_is_no_alarm_and_one_that_stays_up_is(losses, status, steps):
    subject, taken = scripted(losses)
    found = learning.overfit_one_batch(subject)
    assert (found.status, len(taken)) == (status, steps), found.summary


def test_a_model_of_which_nearly_all_is_frozen_need_not_learn_a_batch_by_heart():
    subject, _ = scripted(lambda step, rate: 4.6 + 0.2 * 0.5**step, frozen=True)
    found = learning.overfit_one_batch(subject)
    assert found.status == "not applicable" and "4.0% of the numbers" in found.summary
    learned, _ = scripted(lambda step, rate: 4.8 * 0.9**step, frozen=True)
    assert learning.overfit_one_batch(learned).status == "ok"


def test_two_rates_that_reach_nearly_the_same_loss_are_no_alarm():
    def loss(gain):
        return lambda step, rate: 1.0969 - (gain if rate == 0.1 else 0.9 * gain) * min(step, 60) / 60

    assert learning.learning_rate(scripted(loss(0.0097))[0]).status == "ok"
    assert learning.learning_rate(scripted(loss(0.3))[0]).status == "ok"
    found = learning.learning_rate(scripted(loss(0.9))[0])
    assert found.is_problem and "at a tenth of the rate" in found.summary


@pytest.mark.parametrize(("rate", "wrong"), [(1e-3, False), (5e-5, False), (1e-5, True), (3.0, True)])
def test_a_learning_rate_far_off_is_found(rate, wrong):
    subject = reference_subject(LM, settings={"learning_rate": rate}, layers=1)
    assert learning.learning_rate(subject).is_problem == wrong


def answers(model, batch):
    return model(batch["input_ids"], batch["attention_mask"]).argmax(-1)


@torch.no_grad()
def mean_of_means(model, batches):
    model.eval()
    return sum(float((answers(model, b) == b["labels"]).float().mean()) for b in batches) / len(batches)


@torch.no_grad()
def with_dropout(model, batches):
    right = sum(int((answers(model, b) == b["labels"]).sum()) for b in batches)
    return right / sum(len(b["labels"]) for b in batches)


def in_percent(model, batches):
    return {"accuracy": 100 * with_dropout(model.eval(), batches)}


@torch.no_grad()
def pads_counted(model, batches):
    model.eval()
    hits = [answers(model, b)[:, :-1] == b["input_ids"][:, 1:] for b in batches]
    return sum(int(hit.sum()) for hit in hits) / sum(hit.numel() for hit in hits)


def training(model, batches):
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    return with_dropout(model.eval(), batches)


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [(mean_of_means, "different sizes"), (with_dropout, "training mode"), (training, "changes the weights")],
)
def test_wrong_evaluations_of_a_classifier_are_found(evaluate, said):
    found = counting.evaluation_agreement(
        replace(reference_subject("classification", **TINY), evaluate=evaluate)
    )
    assert found.is_problem and said in found.summary, found.summary


def test_right_evaluations_give_no_alarm():
    subject = reference_subject("classification", **TINY)
    assert counting.evaluation_agreement(subject).status == "ok"
    assert counting.evaluation_agreement(replace(subject, evaluate=in_percent)).status == "ok"
    for pad_left in (False, True):
        assert not counting.evaluation_agreement(
            reference_subject(LM, settings={"pad_left": pad_left})
        ).is_problem
    assert (
        counting.evaluation_agreement(replace(subject, evaluate=lambda *_: None)).status == "not applicable"
    )


class OneScore(Transformer):
    """A classifier with the score of its second class alone."""

    def forward(self, input_ids, attention_mask=None):
        scores = super().forward(input_ids, attention_mask)
        return scores[:, 1:] - scores[:, :1]


def test_one_score_answers_by_its_sign():
    two = reference_subject("classification", **TINY)
    one = replace(two, classes=1, make_model=lambda: OneScore(config_of(two)))

    def by_sign(model, batches):
        model.eval()
        with torch.no_grad():
            right = sum(
                int(((model(b["input_ids"], b["attention_mask"])[:, 0] > 0) == b["labels"]).sum())
                for b in batches
            )
        return right / sum(len(b["labels"]) for b in batches)

    assert counting.evaluation_agreement(replace(one, evaluate=by_sign)).status == "ok"
    first = replace(one, evaluate=lambda model, batches: 1 - by_sign(model, batches))
    assert counting.evaluation_agreement(first).is_problem
    assert controls.label_shuffle_control(replace(one, **bce_of(one))).evidence["by chance"] < 0.8


def bce_of(subject):
    """Return a loss and a step for one score."""

    def loss(model, batch):
        scores = model(batch["input_ids"], batch["attention_mask"])[:, 0]
        return nn.functional.binary_cross_entropy_with_logits(scores, batch["labels"].float())

    def step(model, optimizer, parts):
        optimizer.zero_grad()
        loss(model.train(), parts[0]).backward()
        optimizer.step()

    return {"loss": loss, "train_step": step}


def test_padding_in_a_language_models_evaluation_is_found():
    subject = reference_subject(LM)
    assert counting.evaluation_agreement(replace(subject, evaluate=pads_counted)).is_problem


@pytest.mark.parametrize("pad_left", [False, True])
def test_the_recipes_batches_are_right(pad_left):
    subject = reference_subject("classification", settings={"pad_left": pad_left})
    for one in (
        collation.rows_keep_their_tokens,
        collation.mask_marks_the_padding,
        collation.labels_stay_out_of_the_input,
    ):
        assert one(subject).status == "ok"
        assert one(replace(subject, collate=None)).status == "not applicable"


def rebuilt(change):
    """Return a subject whose batches are changed after they were made."""
    right = reference_subject("classification")
    return replace(right, collate=lambda rows: change(right.collate(rows)))


@pytest.mark.parametrize(
    ("check", "change"),
    [
        (collation.mask_marks_the_padding, lambda b: {**b, "attention_mask": 1 - b["attention_mask"]}),
        (
            collation.mask_marks_the_padding,
            lambda b: {**b, "attention_mask": torch.ones_like(b["input_ids"])},
        ),
        (
            collation.mask_marks_the_padding,
            lambda b: {**b, "input_ids": b["input_ids"] + 5 * (b["input_ids"] == 0)},
        ),
        (collation.rows_keep_their_tokens, lambda b: {**b, "labels": b["labels"].roll(1)}),
        (collation.rows_keep_their_tokens, lambda b: {**b, "input_ids": b["input_ids"].flip(1)}),
        (collation.rows_keep_their_tokens, lambda b: {**b, "input_ids": b["input_ids"][:, :-1]}),
    ],
)
def test_wrong_batches_are_found(check, change):
    assert check(rebuilt(change)).is_problem


def test_rows_may_be_sorted_along_with_their_labels():
    subject = rebuilt(lambda batch: {name: value.flip(0) for name, value in batch.items()})
    assert collation.rows_keep_their_tokens(subject).status == "ok"
    assert collation.mask_marks_the_padding(subject).status == "ok"
