"""What a loss asks of the scores: to push some down, to hear each class, and to aim high."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from companion.data import Batch
from companion.debugging.checks.readings import Reading, read, real_tokens, token_batch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.spying import row_count, some_rows
from companion.debugging.subject import Subject, once

__all__: list[str] = []

_NEEDS = ("make_model", "loss", "batches")
_SEEDS, _ROWS = 3, 16
_UNSURE = 0.6
"""Probability of a label up to which each loss that is in use still pulls it up."""


@dataclass(frozen=True)
class _Rows:
    """Rows of scores, what the loss's gradient is there, and the class that it wants; of a few models.

    Attributes
    ----------
    scores, gradient : Tensor
        (rows, outputs).
    targets : Tensor
        Int64 (rows,).
    """

    scores: Tensor
    gradient: Tensor
    targets: Tensor

    @property
    def probabilities(self) -> Tensor:
        """(rows,): of the target, by softmax."""
        return self.scores.softmax(-1).gather(-1, self.targets[:, None])[:, 0]

    @property
    def pulls(self) -> Tensor:
        """(rows,): the gradient of the target's score."""
        return self.gradient.gather(-1, self.targets[:, None])[:, 0]


def _needs_classes(subject: Subject) -> None:
    if subject.kind in ("regression", "encoder"):
        raise NotApplicable("the scores of this loss are not those of classes or words")


def _readings(subject: Subject, batch: Batch) -> list[Reading]:
    """Return what the loss says about the scores of a few models with weights of their own."""
    models = [subject.model(seed=seed) for seed in range(1 if not subject.fresh else _SEEDS)]
    return [read(replace(subject, make_model=lambda model=model: model), batch) for model in models]  # type: ignore[misc]


@once
def _rows(subject: Subject) -> _Rows:
    """Return all rows that have a label."""
    _needs_classes(subject)
    if subject.by_token:
        batch = token_batch(subject)
        readings = _readings(subject, batch)
        kept = [(it.scores[it.counted], it.gradient[it.counted], it.targets[it.counted]) for it in readings]
    else:
        largest = max(subject.batches, key=row_count)
        batch = some_rows(largest, range(min(row_count(largest), _ROWS)))
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
            raise NotApplicable("the labels are not one class for each text")
        kept = []
        for it in _readings(subject, batch):
            fits = labels.shape == it.targets.shape and it.scores.size(-1) > 1
            if not fits or not bool(((labels >= 0) & (labels < it.scores.size(-1))).all()):
                raise NotApplicable("the labels are not one class for each text")
            kept.append((it.scores, it.gradient, labels))
    if not sum(len(part[0]) for part in kept):
        raise NotApplicable("no row of scores counts in the loss")
    return _Rows(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.9)
def other_scores_are_pushed_down(subject: Subject) -> Finding:
    """Does the loss push any score down, where scores are no probabilities yet?"""
    rows = _rows(subject)
    pushed = float(rows.gradient.clamp(min=0).sum() / rows.gradient.abs().sum())
    normal = rows.scores.logsumexp(-1).abs().max() < 1e-2
    shares = bool((rows.scores >= 0).all()) and bool(((rows.scores.sum(-1) - 1).abs() < 1e-2).all())
    if bool(normal) or shares:
        raise NotApplicable("the scores are probabilities already, or their logarithms")
    evidence = {"share of the gradient that pushes down": pushed}
    if pushed > 1e-4:
        return other_scores_are_pushed_down.ok(f"{pushed:.0%} of the gradient pushes down", evidence)
    return other_scores_are_pushed_down.problem(
        "the loss pulls the score of each label up and pushes no other down; expected as much of both",
        evidence,
        why="The loss has no lower end: all scores grow, and what is said of the text does not count.",
        fix="Use cross_entropy for scores; nll_loss takes logarithms of probabilities, from log_softmax.",
        where="the loss function",
    )


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.85)
def each_class_counts(subject: Subject) -> Finding:
    """Do texts of each class have weight in the loss?"""
    if subject.kind != "classification":
        raise NotApplicable("there are no classes")
    rows = _rows(subject)
    unsure = rows.probabilities < _UNSURE
    silent = rows.gradient.abs().amax(-1) <= 1e-9 * rows.gradient.abs().max()
    evidence, lost = {}, []
    for label in torch.unique(rows.targets).tolist():
        of_class = (rows.targets == label) & unsure
        if int(of_class.sum()) >= 3:
            share = float(silent[of_class].float().mean())
            evidence[f"texts of class {label} without a gradient"] = share
            lost += [label] if share == 1.0 else []
    if not evidence or bool(silent.all()):
        raise NotApplicable("no class has three texts that the model is unsure of")
    if not lost:
        return each_class_counts.ok(f"texts of {len(evidence)} classes count", evidence)
    return each_class_counts.problem(
        f"no text of class {lost[0]} has a gradient, however wrong its scores are; expected one for each",
        evidence,
        why="The model is never told about this class, and learns that it does not exist.",
        fix="Give each class a weight above 0, and mark with -100 nothing but what has no label.",
        where="the loss function",
    )


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.85)
def the_loss_aims_high(subject: Subject) -> Finding:
    """Is the loss least where the label has most of the probability?"""
    rows = _rows(subject)
    aims = []
    for target in torch.unique(rows.targets).tolist() if subject.kind == "classification" else [None]:
        chosen = slice(None) if target is None else rows.targets == target
        aim = _aim(rows.probabilities[chosen], rows.pulls[chosen])
        aims += [] if aim is None else [aim]
    if not aims:
        raise NotApplicable("the gradient is no straight line in the probability: it is another loss")
    chance = 1 / rows.scores.size(-1)
    least = min(aims)
    evidence = {"probability at which the loss is least": least, "by chance": chance}
    if (least - chance) / (1 - chance) > 0.5:
        return the_loss_aims_high.ok(f"the loss is least at a probability of {least:.2f}", evidence)
    return the_loss_aims_high.problem(
        f"the loss is least where the label's probability is {least:.2f}; expected 0.9 or more",
        evidence,
        why="The model is trained to be unsure: its scores stay close together, and small errors turn them.",
        fix="Lower the label smoothing: 0.1 is usual, and it is the share that is taken from the label.",
        where="the loss function",
    )


def _aim(probability: Tensor, pull: Tensor) -> float | None:
    """Return the probability at which the gradient of the label's score is 0; None if it is no line."""
    p, g = probability.double(), pull.double()
    if len(p) < 4 or float(p.std()) < 1e-4:
        return None
    x, y = p - p.mean(), g - g.mean()
    slope = float((x @ y) / (x @ x))
    rest = float((y - slope * x).norm() / y.norm().clamp(min=1e-12))
    return None if rest > 1e-2 or slope <= 0 else float(p.mean()) - float(g.mean()) / slope


def _most_labels(batch: Batch) -> float:
    labels = batch.get("labels")
    return float(labels.sum(-1).max()) if isinstance(labels, Tensor) and labels.dim() == 2 else 0.0


@check(family="training", component="loss", needs=_NEEDS, likelihood=0.85)
def several_labels_do_not_compete(subject: Subject) -> Finding:
    """Can a text have several labels at once, where the data gives it several?"""
    if subject.kind != "classification":
        raise NotApplicable("there are no classes")
    batch = max(subject.batches, key=_most_labels)
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() != 2 or not bool(((labels == 0) | (labels == 1)).all()):
        raise NotApplicable("a text has one label")
    counts = labels.sum(-1)
    if labels.size(1) < 3 or not bool((counts == 1).any()) or not bool((counts == 2).any()):
        raise NotApplicable("no batch has texts with one label and texts with two")
    (reading,) = _readings(subject, batch)[:1]
    if reading.gradient.shape != labels.shape:
        raise NotApplicable("there is no score for each label")
    sizes = reading.gradient.abs().sum(-1).clamp(min=1e-12)
    balance = float((reading.gradient.sum(-1).abs() / sizes)[counts > 0].max())
    # How much a text counts: what pushes down a score that is no label's, per probability.
    pushes = (reading.gradient / reading.scores.softmax(-1)).masked_fill(labels == 1, 0).sum(-1)
    weights = pushes / (labels == 0).sum(-1).clamp(min=1)
    twice = float(weights[counts == 2].mean() / weights[counts == 1].mean())
    evidence = {"imbalance of the gradient": balance, "weight of two labels against one": twice}
    if balance > 1e-3 or abs(twice - 1) < 0.1:
        return several_labels_do_not_compete.ok("labels have losses of their own, or shares of one", evidence)
    return several_labels_do_not_compete.problem(
        f"the texts have up to {int(counts.max())} labels, and the loss raises one score only by lowering "
        "others: a softmax over labels that do not exclude each other",
        evidence,
        why="A text with two labels cannot have both, and one with none still gets one.",
        fix="Use binary_cross_entropy_with_logits for labels of 0 and 1.",
        where="the loss function",
    )


@check(family="training", component="batching", needs=_NEEDS, likelihood=0.7)
def enough_words_are_seen(subject: Subject) -> Finding:
    """Does a masked language model keep enough words to guess the others from?"""
    if subject.kind != "masked language model":
        raise NotApplicable("it is no masked language model")
    shares = torch.cat([_share_hidden(subject, batch) for batch in subject.batches])
    mean, spread = float(shares.mean()), float(shares.std(correction=0))
    evidence = {"share of words to guess": mean, "spread from text to text": spread}
    if mean > 0.9:
        raise NotApplicable("all words count, hidden or not")
    # Some train with all shares, from none to all: then texts differ.
    if mean < 0.6 or spread > 0.2:
        return enough_words_are_seen.ok(f"{mean:.0%} of the words are to be guessed", evidence)
    return enough_words_are_seen.problem(
        f"{mean:.0%} of the words are to be guessed; expected 15 to 40%",
        evidence,
        why="There is next to nothing left to guess the hidden words from but how common they are.",
        fix="Hide a word where torch.rand(...) < 0.15, and not where it is above.",
        where="the batches",
    )


def _share_hidden(subject: Subject, batch: Batch) -> Tensor:
    labels, ids = batch.get("labels"), batch.get("input_ids")
    if ids is None or not isinstance(labels, Tensor) or labels.shape != ids.shape:
        raise NotApplicable("the words to guess are not in the batches")
    real = real_tokens(batch, subject).bool()
    return (real & (labels >= 0)).sum(-1) / real.sum(-1).clamp(min=1)
