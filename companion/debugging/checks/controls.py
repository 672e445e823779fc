"""Runs whose result is known beforehand: what must be learnable, and what must not; and evaluation."""

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
from companion.debugging.finding import Finding
from companion.debugging.spying import NoDropout, copied, row_count, some_rows
from companion.debugging.subject import Subject, seeded

__all__: list[str] = []

_TRAINED = ("make_model", "make_optimizer", "loss", "train_step")
_LONGER = 60
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
    assert subject.make_optimizer is not None and subject.train_step is not None
    model = subject.model(seed=seed).train()
    optimizer = subject.make_optimizer(model)
    for group in optimizer.param_groups:
        if group.get("lr") is not None:
            group["lr"] = (group["lr"] if rate is None else rate) * factor
    with seeded(seed):
        for batch in batches:
            subject.train_step(model, optimizer, [copied(batch)])
    return model


def loss_on(subject: Subject, model: nn.Module, batch: Batch) -> float:
    """Return a batch's loss in evaluation mode, without dropout."""
    assert subject.loss is not None
    model.eval()
    with torch.no_grad(), seeded(0), NoDropout():
        return float(subject.loss(model, copied(batch)))


def one_batch(subject: Subject, rows: int = 8) -> Batch:
    """Return the first rows of the first batch."""
    first = subject.batches[0]
    return some_rows(first, range(min(rows, row_count(first))))


@check(family="training", component="training step", needs=(*_TRAINED, "batches"), slow=True, likelihood=0.2)
def overfit_one_batch(subject: Subject) -> Finding:
    """Does the loss on one batch go down when there is nothing else to learn?"""
    batch, steps = one_batch(subject), 60
    start = loss_on(subject, subject.model(), batch)
    if start < 0.05:
        raise NotApplicable(f"the loss is {start:.2g} before training")
    tried: dict[float, float] = {}
    for factor in (1.0, 10.0, 0.1):
        tried[factor] = loss_on(subject, trained(subject, [batch] * steps, factor=factor), batch)
        if tried[factor] < 0.5 * start:
            break
    best = min(tried, key=lambda factor: tried[factor] if math.isfinite(tried[factor]) else math.inf)
    evidence = {
        "loss before": start,
        **{f"after {steps} steps at {f:g}x the rate": v for f, v in tried.items()},
    }
    if not tried[best] < 0.75 * start:
        return overfit_one_batch.problem(
            f"{steps} steps on one batch bring the loss from {start:.3g} to {tried[best]:.3g} at best, at "
            "its own learning rate, ten times it and a tenth",
            evidence,
            why="What cannot learn eight rows by heart learns nothing from more.",
            fix="Look at the other findings first: this one says that something is wrong, not what.",
        )
    return overfit_one_batch.ok(f"the loss on one batch goes from {start:.3g} to {tried[best]:.3g}", evidence)


@check(family="training", component="optimizer", needs=(*_TRAINED, "batches"), slow=True, likelihood=0.5)
def learning_rate(subject: Subject) -> Finding:
    """Does a step at this learning rate go down, and get anywhere?"""
    batch, steps = one_batch(subject), 12
    start = loss_on(subject, subject.model(), batch)
    after = {
        factor: loss_on(subject, trained(subject, [batch] * steps, factor=factor), batch)
        for factor in (1.0, 0.1, 100.0)
    }
    rate = _rate(subject)
    evidence = {
        "learning rate": rate,
        "loss before": start,
        **{f"after {steps} steps at {factor:g}x": loss for factor, loss in after.items()},
    }
    slack = 0.02 * abs(start)
    if not after[1.0] < start + slack and after[0.1] < start - slack:
        return learning_rate.problem(
            f"{steps} steps on one batch at a learning rate of {rate:.2g} bring its loss from {start:.3g} to "
            f"{after[1.0]:.3g}; at a tenth of the rate to {after[0.1]:.3g}",
            evidence,
            why="The steps are too long: they jump over what they are to reach.",
            fix="Divide the learning rate by 3 until the loss falls from the start.",
        )
    fallen, faster = start - after[1.0], start - after[100.0]
    # Trained models take 2e-5 and more: new ones that get less and do not move are what this is about.
    if subject.fresh and rate < 1.5e-5 and faster > 0.04 * start and fallen < 0.05 * faster:
        return learning_rate.problem(
            f"{steps} steps on one batch at a learning rate of {rate:.2g} bring its loss from {start:.3g} to "
            f"{after[1.0]:.3g}; at a hundred times the rate to {after[100.0]:.3g}",
            evidence,
            why="New weights have far to go: at this rate they hardly leave their place.",
            fix="Try rates ten times as large until the loss no longer falls faster; 1e-5 is for "
            "trained models.",
            likelihood=0.4,
        )
    reached = {factor: _reached(subject, factor) for factor in (1.0, 0.1)}
    evidence |= {f"after {_LONGER} steps at {factor:g}x": loss for factor, loss in reached.items()}
    if reached[1.0] - reached[0.1] > 0.08 * (start - reached[0.1]):
        return learning_rate.problem(
            f"{_LONGER} steps at a learning rate of {rate:.2g} reach a loss of "
            f"{reached[1.0]:.3g}, at a tenth of the rate {reached[0.1]:.3g}",
            evidence,
            why="The steps are so long that shorter ones get further: training settles high, or by luck.",
            fix="Divide the learning rate by 3 until a smaller one no longer gets further.",
        )
    return learning_rate.ok(f"{steps} steps bring the loss from {start:.3g} to {after[1.0]:.3g}", evidence)


def _reached(subject: Subject, factor: float) -> float:
    """Return the mean loss on a few batches after a short run on them, over two seeds."""
    few = list(subject.batches)[:4]
    order = [few[step % len(few)] for step in range(_LONGER)]
    models = [trained(subject, order, factor=factor, seed=seed) for seed in (0, 1)]
    return sum(loss_on(subject, model, batch) for model in models for batch in few) / (2 * len(few))


def _rate(subject: Subject) -> float:
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
        model = trained(subject, fresh[:-1], rate=max(_rate(subject), 1e-2))
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
    rows = [(subject.encode(text), dice.randrange(subject.classes)) for text in texts]
    held, known = rows[:64], rows[64:]
    batches = [subject.collate(known[start : start + 16]) for start in range(0, len(known), 16)]
    model = trained(subject, batches * 6, rate=max(_rate(subject), 1e-3)).eval()
    right = sum(
        int((subject_answers(subject, model, batch) == batch["labels"]).sum())
        for batch in (subject.collate(held[start : start + 16]) for start in range(0, 64, 16))
    )
    chance = max(sum(label == number for _, label in held) for number in range(subject.classes)) / 64
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
    """Return the highest score's number, in evaluation mode: (batch,) or (batch, seq)."""
    mask = batch.get("attention_mask") if subject.takes_mask() else None
    with torch.no_grad(), NoDropout():
        return subject.scores(model.eval(), batch["input_ids"], mask).argmax(dim=-1)


@check(family="training", component="evaluation", needs=("make_model", "evaluate", "batches"), likelihood=0.8)
def evaluation_agreement(subject: Subject) -> Finding:
    """Is the evaluation the share of right answers among all rows?"""
    if subject.kind not in ("classification", "causal language model", "masked language model"):
        raise NotApplicable("there are no right and wrong answers")
    assert subject.evaluate is not None
    model = subject.model(jitter=True).train()
    batches = uneven(subject)
    expected, by_batch, counts = recount(subject, model, batches)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, modes = _evaluated(subject, model, batches)
    evidence = {"evaluation": found, "recount": expected[0], "mean over batches": by_batch}
    slack = max(1e-6, 0.02 / max(sum(counts), 1))
    if any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()):
        return evaluation_agreement.problem(
            "evaluating changes the weights of the model",
            evidence,
            why="The model is trained on what is to judge it.",
            fix="Evaluate under torch.no_grad(), in evaluation mode, without a training step.",
        )
    if any(modes) and _drops(model):
        return evaluation_agreement.problem(
            "the evaluation calls the model in training mode: dropout is on while it is judged",
            {**evidence, "calls in training mode": float(sum(modes))},
            why="The result is too low, and another one each time.",
            fix="Call model.eval() at the start of the evaluation.",
        )
    if not any(expected):
        raise NotApplicable("not one answer is right: every way to count gives zero")
    if any(abs(found - value) <= slack for value in expected):
        return evaluation_agreement.ok(
            f"the evaluation gives {found:.4f}, a recount of all rows too", evidence
        )
    how = ""
    if abs(by_batch - found) <= slack:
        how = ": it is the mean of the batches' means, and the batches are of different sizes"
    return evaluation_agreement.problem(
        f"the evaluation gives {found:.4f}; {expected[0]:.4f} of all answers are right{how}",
        evidence,
        why="Models are chosen by a number that is another one than its name says.",
        fix="Count right answers and answers over all batches, without padding, and divide once.",
    )


def _evaluated(subject: Subject, model: nn.Module, batches: Sequence[Batch]) -> tuple[float, list[bool]]:
    """Return what an evaluation says, and the modes in which it calls a model that comes in training mode."""
    modes: list[bool] = []
    assert subject.evaluate is not None
    handle = model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    try:
        with seeded(1), NoDropout():
            return _share(subject.evaluate(model.train(), [copied(batch) for batch in batches])), modes
    finally:
        handle.remove()


def _drops(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in model.modules())


def _share(value: Any) -> float:
    """Return an evaluation's share of right answers as a number from 0 to 1."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("accuracy", "acc", "eval_accuracy") if name in value), None)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise NotApplicable("the evaluation does not return a share of right answers")
    return value / 100 if value > 1 else float(value)


def uneven(subject: Subject) -> list[Batch]:
    """Return some batches, the last of them shorter than the others."""
    batches = list(subject.batches[:3])
    last = batches[-1]
    if len(batches) == 1 and row_count(last) > 2:
        batches, last = [some_rows(last, range(2, row_count(last))), some_rows(last, range(2))], last
        return batches
    return [*batches[:-1], some_rows(last, range(max(1, row_count(last) // 4)))]


def recount(
    subject: Subject, model: nn.Module, batches: Sequence[Batch]
) -> tuple[list[float], float, list[int]]:
    """Return the shares that are right, the mean of the batches' shares, and the answers in each.

    A language model may count the first word of a text that is padded on the left, or not: both are right.
    """
    totals, means, counts = [[0, 0], [0, 0]], [], []
    for batch in batches:
        answers = subject_answers(subject, model, batch)
        for number, (targets, valid) in enumerate(_answers(subject, batch)):
            if targets.shape != answers[:, : targets.size(1)].shape if targets.dim() == 2 else False:
                raise NotApplicable("there is no score for each token")
            said = answers[:, : targets.size(1)] if targets.dim() == 2 else answers
            right, count = int(((said == targets) & valid).sum()), int(valid.sum())
            totals[number][0] += right
            totals[number][1] += count
            if number == 0:
                means.append(right / max(count, 1))
                counts.append(count)
    if not totals[0][1]:
        raise NotApplicable("the batches have no right answers to compare with")
    return [right / count for right, count in totals if count], sum(means) / len(means), counts


def _answers(subject: Subject, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Return right answers, and which of them count."""
    if not subject.by_token:
        if "labels" not in batch or batch["labels"].numel() != row_count(batch):
            raise NotApplicable("the batches have no label for each text")
        labels = batch["labels"].view(-1)
        return [(labels, labels >= 0)]
    if subject.kind == "masked language model":
        if "labels" not in batch or batch["labels"].dim() != 2:
            raise NotApplicable("the batches have no label for each token")
        return [(batch["labels"], batch["labels"] != -100)]
    ids = batch["input_ids"]
    real = batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids).bool()
    return [(ids[:, 1:], real[:, 1:] & real[:, :-1]), (ids[:, 1:], real[:, 1:])]
