"""Does the evaluation say what it is believed to say: the share of right answers?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.data import Batch
from companion.debugging.checks.controls import subject_answers
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.spying import NoDropout, copied, row_count, some_rows
from companion.debugging.subject import Subject, seeded

__all__ = ["evaluation_agreement", "recount", "uneven"]


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
