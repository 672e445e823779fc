"""Runs whose result is known beforehand: what must be learnable, and what must not."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.data import Batch
from companion.debugging.checks.optimizers import rate_of
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.samples import class_count
from companion.debugging.finding import Finding
from companion.debugging.spying import NoDropout, copied
from companion.debugging.subject import Subject, seeded

__all__ = ["at_the_start", "loss_on", "random_tokens", "rate_before", "subject_answers", "trained"]

_TRAINED = ("make_model", "make_optimizer", "loss", "train_step")
_WORDS, _SEQ, _RANDOM_ROWS = 8, 6, 32
"""Random tokens: few words, in short rows, so that what leaks is learned in a few steps."""


def trained(
    subject: Subject,
    batches: Sequence[Batch],
    *,
    rate: float | None = None,
    factor: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Return a fresh model after one training step on each batch.

    Parameters
    ----------
    subject : Subject
    batches : sequence of dict
    rate : float, optional
        Learning rate instead of the optimizer's own.
    factor : float
        For the learning rate.
    seed : int
    """
    assert subject.train_step is not None
    model, optimizer = at_the_start(subject, rate=rate, factor=factor, seed=seed)
    with seeded(seed):
        for batch in batches:
            subject.train_step(model, optimizer, [copied(batch)])
    return model


def at_the_start(
    subject: Subject, *, rate: float | None = None, factor: float = 1.0, seed: int = 0
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a fresh model in training mode, and its optimizer at another learning rate."""
    assert subject.make_optimizer is not None
    model = subject.model(seed=seed).train()
    optimizer = subject.make_optimizer(model)
    for group in optimizer.param_groups:
        if group.get("lr") is not None:
            group["lr"] = (group["lr"] if rate is None else rate) * factor
    return model, optimizer


def loss_on(subject: Subject, model: nn.Module, batch: Batch) -> float:
    """Return a batch's loss in evaluation mode, without dropout."""
    assert subject.loss is not None
    model.eval()
    with torch.no_grad(), seeded(0), NoDropout():
        return float(subject.loss(model, copied(batch)))


def rate_before(subject: Subject) -> float:
    """Return the highest learning rate of a subject's optimizer."""
    assert subject.make_optimizer is not None
    groups = subject.make_optimizer(subject.model()).param_groups
    return max(rate_of(group) for group in groups)


@check(family="training", component="loss", needs=_TRAINED, slow=True, likelihood=0.6)
def random_token_control(subject: Subject) -> Finding:
    """Does the model predict tokens that nobody can predict?"""
    if not subject.causal:
        raise NotApplicable("only a causal language model predicts tokens from those before them")
    if subject.vocab_size <= _WORDS + 1:
        raise NotApplicable(f"there are only {subject.vocab_size} words")
    steps, floor = 140, math.log(_WORDS)
    fresh = [random_tokens(subject, seed) for seed in range(steps + 1)]
    with NoDropout():
        model = trained(subject, fresh[:-1], rate=max(rate_before(subject), 1e-2))
    loss = loss_on(subject, model, fresh[-1])
    count = _RANDOM_ROWS * (_SEQ - 1)
    margin = max(0.1, 5 * floor / math.sqrt(count))
    evidence = {"loss on new random tokens": loss, "ln of the number of words": floor, "steps": float(steps)}
    if loss < floor - margin:
        return random_token_control.problem(
            f"after {steps} steps on random tokens the loss on new ones is {loss:.3g}; "
            f"nobody can get below ln {_WORDS} = {floor:.3g}",
            evidence,
            why="The answer can be read somewhere: the loss of real text is too low as well, and "
            "writing fails.",
            fix="Look for the leak in the causal mask, in the shift of the labels, and in what mixes tokens.",
        )
    if loss > floor + 1.0:
        raise NotApplicable(
            f"{steps} steps did not even teach which {_WORDS} words there are: loss {loss:.3g}"
        )
    return random_token_control.ok(
        f"the loss on new random tokens is {loss:.3g}; ln {_WORDS} is {floor:.3g}", evidence
    )


def random_tokens(subject: Subject, seed: int) -> Batch:
    """Return a batch of independent random tokens, with labels as the subject's own batches have them."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.arange(subject.vocab_size)
    words = words[words != subject.pad_token_id][-_WORDS:]
    seq = min(_SEQ, subject.max_length - 1)
    drawn = words[torch.randint(len(words), (_RANDOM_ROWS, seq + 1), generator=generator)]
    ids = drawn[:, :-1].contiguous()
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = subject.batches[0].get("labels") if len(subject.batches) else None
    if labels is None:
        return {**batch, "labels": ids.clone()} if not len(subject.batches) else batch
    if labels.dim() < 2:
        return {**batch, "labels": torch.zeros(_RANDOM_ROWS, dtype=labels.dtype)}
    own = subject.batches[0]["input_ids"]
    real = (labels >= 0) & (labels != subject.pad_token_id)
    if labels.shape == own.shape and bool((labels == own)[real].all()):
        return {**batch, "labels": ids.clone()}
    ahead = real[:, :-1] & real[:, 1:]
    if labels.shape == own.shape and bool((labels[:, :-1] == own[:, 1:])[ahead].all()):
        return {**batch, "labels": drawn[:, 1:].contiguous()}
    raise NotApplicable("the labels of its batches are neither the tokens nor the next ones")


@check(
    family="training",
    component="labels",
    needs=(*_TRAINED, "collate", "encode", "splits"),
    slow=True,
    likelihood=0.6,
)
def label_shuffle_control(subject: Subject) -> Finding:
    """Does a classifier predict labels that were drawn at random?"""
    if subject.kind != "classification":
        raise NotApplicable("it is no classifier")
    assert subject.collate is not None and subject.encode is not None
    texts = list(dict.fromkeys(example.text for part in subject.splits.values() for example in part))[:192]
    if len(texts) < 96:
        raise NotApplicable(f"{len(texts)} texts are too few to tell luck from leakage")
    dice = random.Random(0)
    classes = class_count(subject)
    rows = [(subject.encode(text), dice.randrange(classes)) for text in texts]
    held, known = rows[:64], rows[64:]
    batches = [subject.collate(known[start : start + 16]) for start in range(0, len(known), 16)]
    model = trained(subject, batches * 6, rate=max(rate_before(subject), 1e-3)).eval()
    right = sum(
        int((subject_answers(subject, model, batch) == batch["labels"]).sum())
        for batch in (subject.collate(held[start : start + 16]) for start in range(0, 64, 16))
    )
    chance = max(sum(label == number for _, label in held) for number in range(classes)) / 64
    limit = chance + 4 * math.sqrt(chance * (1 - chance) / 64)
    evidence = {"accuracy on new texts": right / 64, "by chance": chance, "limit": limit}
    if right / 64 > limit:
        return label_shuffle_control.problem(
            f"{right / 64:.0%} of labels drawn at random are predicted right for new texts; chance gives "
            f"{chance:.0%}",
            evidence,
            why="The label is in the input: real results are as worthless.",
            fix="Look at what the batch is made of: nothing in it but `labels` may depend on the label.",
        )
    return label_shuffle_control.ok(
        f"labels drawn at random are predicted as by chance: {right / 64:.0%} right", evidence
    )


def subject_answers(subject: Subject, model: nn.Module, batch: Batch) -> Tensor:
    """Return the highest score's number, in evaluation mode: (batch,) or (batch, seq).

    A single score of a classifier is that of its second class, where the first has 0.
    """
    mask = batch.get("attention_mask") if subject.takes_mask() else None
    with torch.no_grad(), NoDropout():
        scores = subject.scores(model.eval(), batch["input_ids"], mask)
    if subject.kind == "classification" and scores.size(-1) == 1:
        return (scores[..., 0] > 0).long()
    return scores.argmax(dim=-1)
