"""Checks of the loss: what it aims at, what it counts, and what it divides by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from companion.data import Batch
from companion.debugging.checks.readings import read, real_tokens, token_batch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.samples import class_count
from companion.debugging.finding import Finding
from companion.debugging.spying import row_count, some_rows
from companion.debugging.subject import Subject

__all__: list[str] = []

_NEEDS = ("make_model", "loss", "batches")


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.9)
def label_alignment(subject: Subject) -> Finding:
    """Does the loss at each token aim at the token after it?"""
    if not subject.causal:
        raise NotApplicable("only a causal language model predicts the next token")
    batch = token_batch(subject)
    reading = read(subject, batch)
    ids, real = batch["input_ids"], real_tokens(batch, subject).bool()
    if ids.shape != reading.targets.shape:
        raise NotApplicable("there is no score for each token")
    shares = {}
    for shift in (-1, 0, 1, 2):
        if ids.size(1) <= 4:
            raise NotApplicable("the texts are too short to tell one place from the next")
        wanted, possible = torch.roll(ids, -shift, dims=1), real & torch.roll(real, -shift, dims=1)
        possible = possible & reading.counted
        possible[:, :1] = possible[:, -2:] = False
        # Where neighbours are the same word, a hit says nothing.
        for other in (-1, 0, 1, 2):
            if other != shift:
                possible = possible & (wanted != torch.roll(ids, -other, dims=1))
        shares[shift] = _share(reading.targets == wanted, possible)
    evidence = {f"aims {shift} tokens ahead": share for shift, share in shares.items()}
    if shares[1] > 0.9:
        return label_alignment.ok(f"{shares[1]:.0%} of the targets are the next token", evidence)
    best = max(shares, key=lambda shift: shares[shift])
    if shares[best] < 0.9:
        raise NotApplicable("the targets are not among the tokens that are read")
    said = {
        0: "the token itself: labels are not shifted",
        2: "the token after the next: labels are shifted twice",
        -1: "the token before: labels are shifted the wrong way",
    }
    return label_alignment.problem(
        f"{shares[best]:.0%} of the targets are {said[best]}; expected the next token",
        evidence,
        why="The loss falls, towards zero if the answer can be read off, and the model cannot write.",
        fix="Compare scores[:, :-1] with input_ids[:, 1:], once: models that take `labels` "
        "shift by themselves.",
        where="the targets of the loss",
    )


def _share(hits: Tensor, of: Tensor) -> float:
    return float((hits & of).sum()) / max(int(of.sum()), 1)


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.8)
def padding_in_the_loss(subject: Subject) -> Finding:
    """Does the loss count what is predicted for padding?"""
    if not subject.by_token or subject.kind == "encoder":
        raise NotApplicable("there is one prediction for a text, none for padding")
    batch = token_batch(subject)
    real = real_tokens(batch, subject).bool()
    if real.all():
        raise NotApplicable("no batch has padding")
    reading = read(subject, batch)
    if reading.weights.shape != real.shape:
        raise NotApplicable("there is no score for each token")
    predicted = torch.roll(real, -1, dims=1) if subject.causal else real
    if subject.causal:
        predicted[:, -1] = real[:, -1]
    padded, total = float(reading.weights[~predicted].sum()), float(reading.weights.sum())
    evidence = {"share of the loss's weight on padding": padded / total}
    if bool((reading.counted & ~predicted).any()):
        return padding_in_the_loss.problem(
            f"{padded / total:.0%} of the loss's weight is on padding; expected 0",
            evidence,
            why="The model learns to predict padding, which is easy: the loss looks good and means little.",
            fix="Give padding the label -100, by the attention mask, and leave it out of the count.",
            where="the targets of the loss",
        )
    return padding_in_the_loss.ok("padding has no weight in the loss", evidence)


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.7)
def end_token_in_the_loss(subject: Subject) -> Finding:
    """Is the end of a text learned, where padding has the same number?"""
    if not subject.causal:
        raise NotApplicable("only a causal language model has to learn where to end")
    ends = []
    for batch in subject.batches:
        if "input_ids" not in batch or "attention_mask" not in batch:
            raise NotApplicable("without a mask an end and a pad cannot be told apart")
        real = batch["attention_mask"].bool()
        end = torch.zeros_like(real)
        end[:, 1:] = real[:, 1:] & real[:, :-1] & (batch["input_ids"][:, 1:] == subject.pad_token_id)
        ends.append(end)
    most = max(range(len(ends)), key=lambda index: int(ends[index].sum()))
    if not ends[most].any():
        raise NotApplicable("no real token has the number of the padding")
    reading = read(subject, subject.batches[most])
    if reading.weights.shape != ends[most].shape:
        raise NotApplicable("there is no score for each token")
    counted = _share(torch.roll(reading.counted, 1, dims=1), ends[most])
    evidence = {"real end tokens": float(ends[most].sum()), "share that counts": counted}
    if counted < 0.01:
        return end_token_in_the_loss.problem(
            f"none of {int(ends[most].sum())} real end tokens counts in the loss: they are "
            "left out with padding, "
            "which has the same number",
            evidence,
            why="The model never learns to stop.",
            fix="Leave padding out by the attention mask, not by its number.",
            where="the targets of the loss",
        )
    return end_token_in_the_loss.ok(f"{counted:.0%} of the real end tokens count", evidence)


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.7)
def loss_normalisation(subject: Subject) -> Finding:
    """Does the loss stay as it is when rows are doubled, or padding is added?"""
    batch = (
        token_batch(subject)
        if subject.by_token
        else some_rows(subject.batches[0], range(min(8, row_count(subject.batches[0]))))
    )
    if subject.kind in ("regression", "encoder"):
        raise NotApplicable("the weights of this loss cannot be read from its gradient")
    plain = read(subject, batch)
    total = float(plain.weights.sum())
    doubled = float(read(subject, _doubled(batch)).weights.sum())
    evidence = {"sum of weights": total, "with all rows twice": doubled}
    if not 0.8 < doubled / total < 1.25:
        return loss_normalisation.problem(
            f"with all rows twice the loss weighs {doubled / total:.3g} times as much; "
            "expected 1: it is a sum",
            evidence,
            why="The step's length grows with the batch, and clipping decides it alone.",
            fix="Divide by the number of predicted tokens or texts.",
        )
    padded = _padded(subject, batch)
    if padded is None:
        return loss_normalisation.ok("all rows twice have the same loss", evidence)
    wider = float(read(subject, padded).weights.sum())
    evidence["with padding added"] = wider
    if not 0.9 < wider / total < 1.1:
        return loss_normalisation.problem(
            f"with padding added the loss weighs {wider / total:.3g} times as much; expected 1: "
            "it is divided by padding too",
            evidence,
            why="The longest text of a batch decides how much the others count.",
            fix="Divide by the number of predicted tokens, not by that of all places.",
        )
    return loss_normalisation.ok("doubled rows and added padding leave the loss as it is", evidence)


def _doubled(batch: Batch) -> Batch:
    rows = row_count(batch)
    return some_rows(batch, [*range(rows), *range(rows)])


def _padded(subject: Subject, batch: Batch) -> Batch | None:
    """Return the batch with columns of padding where its padding is; None if there is nowhere to put it."""
    if not subject.by_token or "attention_mask" not in batch:
        return None
    shape = batch["input_ids"].shape
    left = not bool(batch["attention_mask"][:, 0].all())
    extra = min(shape[1], subject.max_length - shape[1])
    if extra < max(4, shape[1] // 4):
        half = shape[1] // 2
        if half < 4:
            return None
        batch = {
            name: (value[:, -half:] if left else value[:, :half]) if _like(value, shape) else value
            for name, value in batch.items()
        }
        extra, shape = half, batch["input_ids"].shape
        if half < 4:
            return None
    filler = {"input_ids": subject.pad_token_id, "labels": -100}
    side = (extra, 0) if left else (0, extra)
    return {
        name: functional.pad(value, side, value=filler.get(name, 0)) if _like(value, shape) else value
        for name, value in batch.items()
    }


def _like(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.8)
def loss_of_the_scores(subject: Subject) -> Finding:
    """Is the loss the cross-entropy of the scores, with one softmax?"""
    if subject.kind in ("regression", "encoder"):
        raise NotApplicable("this loss is no cross-entropy")
    batch = some_rows(subject.batches[0], range(min(8, row_count(subject.batches[0]))))
    reading = read(subject, batch)
    targets = reading.targets
    if not subject.by_token:
        targets = batch["labels"].view(-1) if "labels" in batch else targets
        odd = (targets < 0) | (targets >= reading.scores.size(-1)) | (targets != targets.long())
        if targets.shape != reading.targets.shape or bool(odd.any()):
            raise NotApplicable("the labels are not one class for each text")
        targets = targets.long()
    once = _cross_entropy(reading.scores, targets, reading.counted)
    twice = _cross_entropy(reading.squashed, targets, reading.counted)
    evidence = {"loss": reading.loss, "cross-entropy": once, "after another softmax": twice}
    if not subject.by_token and not bool((reading.targets == targets).any()):
        return loss_of_the_scores.problem(
            "no text's loss aims at its label",
            evidence,
            why="The model learns the wrong answer, and learns it well.",
            fix="Check which class each target is, and that labels stay in the order of their rows.",
        )
    if abs(once - twice) < 0.005 * max(once, twice):
        raise NotApplicable("one softmax and two give the same loss here")
    if abs(reading.loss - twice) < 0.05 * abs(once - twice):
        return loss_of_the_scores.problem(
            f"the loss is {reading.loss:.4g}, that of scores put through softmax first; "
            f"cross-entropy is {once:.4g}",
            evidence,
            why="The gradient fades, and the loss cannot fall below that of scores between 0 and 1.",
            fix="Give cross_entropy the scores as they are: it has the softmax in it.",
            where="the loss, or the model's last lines",
        )
    return loss_of_the_scores.ok(f"the loss is {reading.loss:.4g}, and cross-entropy {once:.4g}", evidence)


def _cross_entropy(scores: Tensor, targets: Tensor, counted: Tensor) -> float:
    return float(functional.cross_entropy(scores[counted], targets[counted]))


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.9)
def loss_depends_on_labels(subject: Subject) -> Finding:
    """Does each text's label reach its own loss, and no other?"""
    if subject.by_token or subject.kind == "encoder":
        raise NotApplicable("the labels are the tokens: see label alignment")
    first = subject.batches[0]
    batch = some_rows(first, range(min(8, row_count(first))))
    if "labels" not in batch or row_count(batch) < 3 or batch["labels"].numel() != row_count(batch):
        raise NotApplicable("there are no three rows with a label each")
    changed = dict(batch)
    changed["labels"] = batch["labels"].clone()
    flat = changed["labels"].view(-1)
    flat[0] = (flat[0] + 1) % max(subject.classes, 2) if subject.kind == "classification" else flat[0] + 1.0
    before, after = read(subject, batch), read(subject, changed)
    if not torch.equal(before.scores, after.scores):
        return loss_depends_on_labels.problem(
            "another label moves the scores by "
            f"{float((before.scores - after.scores).abs().max()):.2g}; expected 0",
            {"scores moved": float((before.scores - after.scores).abs().max())},
            why="The answer is part of the question: the model looks perfect until it has to answer alone.",
            fix="Compute the scores from the text alone.",
            component="labels",
            where="the model, or what the batch gives it",
        )
    own = float((before.gradient[0] - after.gradient[0]).abs().max()) / float(before.gradient.abs().max())
    if own < 1e-6:
        return loss_depends_on_labels.problem(
            "another label of the first text leaves the loss's gradient at it as it was",
            {"gradient moved": own},
            why="The model is trained on something else than its labels.",
            fix="Check what the loss takes as targets, and in which order.",
        )
    return _only_its_own(before.gradient[1:], after.gradient[1:], own)


def _only_its_own(before: Tensor, after: Tensor, own: float) -> Finding:
    """Compare the other rows' gradients, up to a common factor: class weights change the divisor."""
    factor = float((before * after).sum() / before.square().sum().clamp(min=1e-30))
    others = float((after - factor * before).abs().max()) / float(before.abs().max().clamp(min=1e-30))
    evidence = {"gradient moved at the text": own, "at the others": others}
    if others > 1e-2:
        return loss_depends_on_labels.problem(
            f"another label of the first text moves the gradient at the others by {others:.2g} of its size; "
            "expected 0: each score is compared with all labels",
            evidence,
            why="All texts are pulled to the mean of the labels.",
            fix="Give scores and labels one shape: (batch, 1) minus (batch,) is (batch, batch).",
        )
    return loss_depends_on_labels.ok("each label moves the gradient at its own text alone", evidence)


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.8)
def masked_tokens_only(subject: Subject) -> Finding:
    """Does a masked language model predict what it cannot see, and nothing else?"""
    if subject.kind != "masked language model":
        raise NotApplicable("it is no masked language model")
    batch = token_batch(subject)
    reading = read(subject, batch)
    ids, real = batch["input_ids"], real_tokens(batch, subject).bool()
    if reading.targets.shape != ids.shape:
        raise NotApplicable("there is no score for each token")
    counted = reading.counted & real
    if int(counted.sum()) < 3:
        raise NotApplicable("fewer than three tokens count")
    share, seen = _share(counted, real), _share(reading.targets == ids, counted)
    evidence = {"share of tokens that count": share, "of these, that can be seen": seen}
    if seen > 0.5 or (share > 0.9 and seen > 0.25):
        return masked_tokens_only.problem(
            f"{share:.0%} of the tokens count in the loss, and {seen:.0%} of these can be read in the input; "
            "expected about 15% and 10%",
            evidence,
            why="The loss falls by copying, which teaches nothing.",
            fix="Give -100 as the label of every token that was not chosen, and mask those that were.",
        )
    return masked_tokens_only.ok(
        f"{share:.0%} of the tokens count, {seen:.0%} of these can be seen", evidence
    )


@check(family="training", component="labels", needs=("make_model", "batches"), likelihood=0.9)
def targets_in_range(subject: Subject) -> Finding:
    """Is there a score for every label?"""
    labels = [batch["labels"] for batch in subject.batches if "labels" in batch]
    if not labels or subject.kind in ("regression", "encoder") or labels[0].is_floating_point():
        raise NotApplicable("there are no labels that number classes or words")
    if subject.by_token and any(value.dim() < 2 for value in labels):
        raise NotApplicable("the labels of these batches are not words")
    outputs = (subject.outputs or 0) if subject.by_token else class_count(subject)
    values = torch.cat([value.flatten() for value in labels])
    wrong = values[((values < 0) & (values != -100)) | (values >= outputs)]
    evidence = {"smallest": float(values.min()), "largest": float(values.max()), "scores": float(outputs)}
    if len(wrong):
        return targets_in_range.problem(
            f"{len(wrong)} labels are not from 0 to {outputs - 1}: {int(wrong[0])}, for example",
            evidence,
            why="Cross-entropy raises an error on them, or on a GPU stops the process.",
            fix="Number classes from 0, and mark what has no label with -100.",
        )
    return targets_in_range.ok(f"all labels are from 0 to {outputs - 1}", evidence)
