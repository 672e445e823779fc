"""Controls: what cannot be learned is not, what can be is; evaluations count; batches keep their rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from companion.debugging.checks import collation, controls
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
    assert controls.overfit_one_batch(right).status == "ok"
    assert controls.overfit_one_batch(replace(right, train_step=lambda *_: None)).is_problem
    assert controls.overfit_one_batch(replace(right, batches=())).status == "not applicable"


@pytest.mark.parametrize(("rate", "wrong"), [(1e-3, False), (5e-5, False), (1e-5, True), (3.0, True)])
def test_a_learning_rate_far_off_is_found(rate, wrong):
    subject = reference_subject(LM, settings={"learning_rate": rate}, layers=1)
    assert controls.learning_rate(subject).is_problem == wrong


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
    found = controls.evaluation_agreement(
        replace(reference_subject("classification", **TINY), evaluate=evaluate)
    )
    assert found.is_problem and said in found.summary, found.summary


def test_right_evaluations_give_no_alarm():
    subject = reference_subject("classification", **TINY)
    assert controls.evaluation_agreement(subject).status == "ok"
    assert controls.evaluation_agreement(replace(subject, evaluate=in_percent)).status == "ok"
    for pad_left in (False, True):
        assert not controls.evaluation_agreement(
            reference_subject(LM, settings={"pad_left": pad_left})
        ).is_problem
    assert (
        controls.evaluation_agreement(replace(subject, evaluate=lambda *_: None)).status == "not applicable"
    )


def test_padding_in_a_language_models_evaluation_is_found():
    subject = reference_subject(LM)
    assert controls.evaluation_agreement(replace(subject, evaluate=pads_counted)).is_problem


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
