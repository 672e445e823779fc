"""Checks of the loss: each finds what is planted, and leaves every usual way to write a loss alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from companion.debugging.checks import losses
from companion.debugging.subject import Subject
from companion.debugging.zoo.subjects import reference_subject

LM, MASKED = "causal language model", "masked language model"
LOSS_CHECKS = [
    losses.label_alignment,
    losses.padding_in_the_loss,
    losses.end_token_in_the_loss,
    losses.loss_normalisation,
    losses.loss_of_the_scores,
    losses.loss_depends_on_labels,
    losses.masked_tokens_only,
    losses.targets_in_range,
]
BERT = BertConfig(
    vocab_size=400,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
)
GPT = GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=1, n_head=2, pad_token_id=0)


def alarms(subject: Subject) -> list[str]:
    return [
        f"{found.check}: {found.summary}"
        for found in (one(subject) for one in LOSS_CHECKS)
        if found.is_problem
    ]


def language(
    model, batch, *, shift=1, pads=False, double=False, reduction="mean", over_all=False, smoothing=0.0
):
    """Return the loss of a causal language model, right unless told otherwise."""
    scores = model(batch["input_ids"], batch["attention_mask"])
    labels = batch["input_ids"].clone()
    if not pads:
        labels[batch["attention_mask"] == 0] = -100
    targets = torch.full_like(labels, -100)
    targets[:, : labels.size(1) - shift] = labels[:, shift:]
    if double:
        scores = scores.softmax(-1)
    summed = functional.cross_entropy(
        scores.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing
    )
    if reduction == "sum":
        return summed
    return summed / (targets.numel() if over_all else (targets != -100).sum())


def with_loss(loss, kind: str = LM, **options) -> Subject:
    return replace(reference_subject(kind, layers=1, **options), loss=loss)


@pytest.mark.parametrize(
    ("check", "options", "said"),
    [
        (losses.label_alignment, {"shift": 0}, "not shifted"),
        (losses.label_alignment, {"shift": 2}, "shifted twice"),
        (losses.padding_in_the_loss, {"pads": True}, "on padding"),
        (losses.loss_normalisation, {"reduction": "sum"}, "it is a sum"),
        (losses.loss_normalisation, {"over_all": True}, "divided by padding"),
        (losses.loss_of_the_scores, {"double": True}, "softmax first"),
    ],
)
@pytest.mark.parametrize("pad_left", [False, True])
def test_a_fault_in_a_language_models_loss_is_named(check, options, said, pad_left):
    found = check(with_loss(partial(language, **options), settings={"pad_left": pad_left}))
    assert found.is_problem and said in found.summary, found.summary


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("pad_left", [False, True])
def test_the_recipes_losses_give_no_alarm(norm, tied, pad_left):
    for kind in (LM, "classification"):
        subject = reference_subject(kind, norm=norm, tied=tied, layers=1, settings={"pad_left": pad_left})
        assert alarms(subject) == []
    assert losses.label_alignment(reference_subject(LM, layers=1)).status == "ok"


def test_other_right_losses_give_no_alarm():
    assert alarms(with_loss(partial(language, smoothing=0.1))) == []

    def log_probabilities(model, batch):
        scores = model(batch["input_ids"]).log_softmax(-1)[:, :-1]
        real = batch["attention_mask"][:, 1:].bool()
        return functional.nll_loss(scores[real], batch["input_ids"][:, 1:][real])

    def mean_of_rows(model, batch):
        scores, real = (
            model(**{k: batch[k] for k in ("input_ids", "attention_mask")}),
            batch["attention_mask"][:, 1:],
        )
        each = functional.cross_entropy(
            scores[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none"
        )
        return ((each * real).sum(1) / real.sum(1)).mean()

    assert alarms(with_loss(log_probabilities)) == []
    assert alarms(with_loss(mean_of_rows)) == []


def test_labels_that_are_shifted_in_the_data_are_right_without_another_shift():
    subject = reference_subject(LM, layers=1)
    batches = []
    for batch in subject.batches:
        ids = batch["input_ids"]
        ahead = functional.pad(ids[:, 1:], (0, 1)).masked_fill(
            functional.pad(batch["attention_mask"][:, 1:], (0, 1)) == 0, -100
        )
        batches.append({**batch, "labels": ahead})

    def loss(model, batch):
        return functional.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())

    right = replace(subject, batches=batches, loss=loss)
    assert alarms(right) == [] and losses.label_alignment(right).status == "ok"

    def shifted_again(model, batch):
        scores = model(batch["input_ids"])[:, :-1]
        return functional.cross_entropy(scores.flatten(0, 1), batch["labels"][:, 1:].flatten())

    assert "twice" in losses.label_alignment(replace(right, loss=shifted_again)).summary


def huggingface(make, kind: str, batches, **options) -> Subject:
    return Subject(
        make,
        kind,
        400,
        max_length=64,
        loss=lambda model, batch: model(**batch).loss,
        batches=batches,
        **options,
    )


def labelled(masked_fill) -> list:
    return [{**batch, "labels": masked_fill(batch)} for batch in reference_subject(LM).batches]


def not_pads(batch):
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def test_hugging_face_models_with_the_loss_inside_give_no_alarm():
    lm = huggingface(partial(GPT2LMHeadModel, GPT), LM, labelled(not_pads))
    assert alarms(lm) == [] and losses.label_alignment(lm).status == "ok"
    assert losses.padding_in_the_loss(lm).status == "ok"
    assert losses.padding_in_the_loss(
        replace(lm, batches=labelled(lambda batch: batch["input_ids"]))
    ).is_problem
    rows = list(reference_subject("classification").batches)
    for model, config in ((BertForSequenceClassification, BERT), (GPT2ForSequenceClassification, GPT)):
        classifier = huggingface(partial(model, config), "classification", rows, classes=2)
        assert alarms(classifier) == [], model
        assert losses.loss_depends_on_labels(classifier).status == "ok"


def end_is_padding(loss) -> Subject:
    """Return texts that end with the padding token, which the mask shows."""
    subject = reference_subject(LM, layers=1)
    batches = []
    for batch in subject.batches:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        end = mask.sum(1).clamp(max=ids.size(1) - 1)
        batches.append(
            {
                **batch,
                "attention_mask": mask.scatter(1, end[:, None], 1),
                "input_ids": ids.scatter(1, end[:, None], 0),
            }
        )
    return replace(subject, batches=batches, loss=loss)


def test_an_end_token_that_is_also_the_padding_has_to_count():
    def by_number(model, batch):
        shown = (batch["input_ids"] != 0).long()
        return language(model, {**batch, "attention_mask": batch["attention_mask"] * shown})

    assert losses.end_token_in_the_loss(end_is_padding(by_number)).is_problem
    assert alarms(end_is_padding(language)) == []
    assert losses.end_token_in_the_loss(end_is_padding(language)).status == "ok"


def masked(batch, *, chosen_share=0.15, keep_all=False, hide=True, pads=False):
    dice = torch.Generator().manual_seed(0)
    chosen = torch.rand(batch["input_ids"].shape, generator=dice) < chosen_share
    chosen &= (batch["attention_mask"] == 1) | pads
    labels = batch["input_ids"] if keep_all else batch["input_ids"].masked_fill(~chosen, -100)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(chosen & hide, 3), "labels": labels}


@pytest.mark.parametrize(
    ("check", "options"),
    [
        (losses.masked_tokens_only, {"keep_all": True}),
        (losses.masked_tokens_only, {"hide": False}),
        (losses.padding_in_the_loss, {"pads": True}),
    ],
)
def test_a_masked_language_model_predicts_what_is_masked(check, options):
    def subject(**options) -> Subject:
        batches = [masked(batch, **options) for batch in reference_subject(LM).batches]
        return huggingface(partial(BertForMaskedLM, BERT), MASKED, batches)

    assert check(subject(**options)).is_problem
    assert alarms(subject()) == [] and check(subject()).status == "ok"


def test_faults_in_a_classifiers_loss_are_found():
    def by(loss) -> Subject:
        return with_loss(
            lambda model, batch: loss(model(batch["input_ids"], batch["attention_mask"]), batch),
            "classification",
        )

    entropy = functional.cross_entropy
    assert losses.loss_of_the_scores(by(lambda s, b: entropy(s.softmax(-1), b["labels"]))).is_problem
    assert losses.loss_of_the_scores(by(lambda s, b: entropy(s, 1 - b["labels"]))).is_problem
    assert losses.loss_normalisation(by(lambda s, b: entropy(s, b["labels"], reduction="sum"))).is_problem
    assert losses.loss_depends_on_labels(by(lambda s, b: entropy(s, s.argmin(-1)))).is_problem
    assert alarms(by(lambda s, b: entropy(s, b["labels"], label_smoothing=0.1))) == []
    assert alarms(by(lambda s, b: entropy(s, b["labels"], weight=torch.tensor([1.0, 3.0])))) == []
    leaking = by(lambda s, b: entropy(s, b["labels"]))
    leaking = replace(
        leaking,
        loss=lambda m, b: entropy(m(b["input_ids"] + b["labels"][:, None], b["attention_mask"]), b["labels"]),
    )
    found = losses.loss_depends_on_labels(leaking)
    assert found.is_problem and found.component == "labels"


def test_a_regression_that_compares_all_with_all_is_found():
    subject = replace(reference_subject("classification", layers=1, classes=1), kind="regression", classes=1)
    subject = replace(
        subject,
        batches=[{**b, "labels": b["labels"] + torch.rand(len(b["labels"]))} for b in subject.batches],
    )

    def broadcast(model, batch):
        return ((model(batch["input_ids"], batch["attention_mask"]) - batch["labels"]) ** 2).mean()

    def right(model, batch):
        return functional.mse_loss(model(batch["input_ids"], batch["attention_mask"])[:, 0], batch["labels"])

    assert "all labels" in losses.loss_depends_on_labels(replace(subject, loss=broadcast)).summary
    assert alarms(replace(subject, loss=right)) == []


def test_labels_without_a_score_are_found():
    subject = reference_subject("classification", layers=1)
    wrong = [{**batch, "labels": batch["labels"] + 1} for batch in subject.batches]
    assert losses.targets_in_range(replace(subject, batches=wrong)).is_problem


def one_score(loss=functional.binary_cross_entropy_with_logits, **options) -> Subject:
    """Return a classifier of two classes with one score, that of the second."""
    subject = reference_subject("classification", layers=1, classes=1)

    def of_batch(model, batch):
        return loss(model(batch["input_ids"], batch["attention_mask"])[:, 0], batch["labels"].float())

    return replace(subject, **{"loss": of_batch, **options})


def test_one_score_stands_for_two_classes():
    subject = one_score()
    said = {check.name: check(subject) for check in LOSS_CHECKS}
    assert not [finding.summary for finding in said.values() if finding.is_problem]
    for name in ("targets in range", "loss of the scores", "loss normalisation", "loss depends on labels"):
        assert said[name].status == "ok", said[name].summary
    assert said["loss of the scores"].evidence["loss"] == pytest.approx(
        said["loss of the scores"].evidence["cross-entropy"], rel=1e-4
    )
    floats = [{**batch, "labels": batch["labels"].float()} for batch in subject.batches]
    assert losses.loss_of_the_scores(replace(subject, batches=floats)).status == "ok"
    soft = [{**batch, "labels": 0.1 + 0.8 * batch["labels"].float()} for batch in subject.batches]
    assert losses.loss_of_the_scores(replace(subject, batches=soft)).status == "not applicable"


def test_faults_in_the_loss_of_one_score_are_found():
    entropy = functional.binary_cross_entropy_with_logits
    twice = losses.loss_of_the_scores(one_score(lambda scores, labels: entropy(scores.sigmoid(), labels)))
    assert twice.is_problem and "softmax first" in twice.summary
    turned = losses.loss_of_the_scores(one_score(lambda scores, labels: entropy(scores, 1 - labels)))
    assert turned.is_problem and "aims at its label" in turned.summary
    summed = one_score(lambda scores, labels: entropy(scores, labels, reduction="sum"))
    assert losses.loss_normalisation(summed).is_problem
    three = [{**batch, "labels": batch["labels"] + 1} for batch in one_score().batches]
    found = losses.targets_in_range(one_score(batches=three))
    assert found.is_problem and "not from 0 to 1" in found.summary
    assert "not one class for each text" in losses.loss_of_the_scores(one_score(batches=three)).summary


def test_checks_that_cannot_tell_say_so():
    lm = reference_subject(LM, layers=1)
    full = [
        {name: value[:, :6] if value.dim() == 2 else value for name, value in batch.items()}
        for batch in lm.batches
    ]
    assert losses.padding_in_the_loss(replace(lm, batches=full)).status == "not applicable"
    assert losses.end_token_in_the_loss(lm).status == "not applicable"
    assert (
        losses.masked_tokens_only(lm).status == losses.loss_depends_on_labels(lm).status == "not applicable"
    )
    detached = with_loss(lambda model, batch: sum(p.sum() for p in model.parameters()))
    assert losses.label_alignment(detached).status == "not applicable"
    classifier = reference_subject("classification", layers=1)
    assert losses.label_alignment(classifier).status == "not applicable"
    assert losses.loss_depends_on_labels(replace(classifier, loss=None)).status == "not applicable"
