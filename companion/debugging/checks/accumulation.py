"""Checks of a batch in parts, and of the loss that a step follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from companion.data import Batch
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.checks.steps import ALARM, NEEDS, NOISE, ROWS, learner, one_gradient, two_batches
from companion.debugging.finding import Finding
from companion.debugging.spying import (
    Gradients,
    NoDropout,
    Recording,
    apart,
    gradients_of,
    length,
    row_count,
    some_rows,
    watch,
)
from companion.debugging.subject import Subject, seeded

__all__ = ["accumulation_equivalence", "step_follows_the_loss"]


@check(family="training", component="training step", needs=NEEDS, likelihood=0.9)
def accumulation_equivalence(subject: Subject) -> Finding:
    """Does a batch in two uneven parts give the gradient that it gives in one?"""
    whole, parts = _uneven_parts(subject)
    _rows_are_independent(subject, whole, parts[0])
    one = _gradient(subject, [whole])
    if not apart(one, _gradient(subject, [whole], seed=1)) < NOISE:
        raise NotApplicable("the step is random even without dropout: two gradients of one batch differ")
    try:
        record = _record(subject, parts)
    except Exception as error:
        raise NotApplicable(f"the training step takes one batch, not parts of one ({error})") from error
    if len(record.at_step) != 1:
        return accumulation_equivalence.problem(
            f"the optimizer took {len(record.at_step)} steps on one batch in 2 parts, expected 1",
            {"optimizer steps": float(len(record.at_step))},
            why="Parts that were meant to make a larger batch are trained on as small ones.",
            fix="Call backward for each part, and optimizer.step() once after the last.",
            where="the training step",
        )
    alone = _gradient(subject, parts[:1])
    if apart(record.at_step[0], alone) < NOISE and abs(length(record.at_step[0]) / length(alone) - 1) < NOISE:
        raise NotApplicable("the training step looks at the first part only: it does not accumulate")
    return _compare_parts(subject, one, record.at_step[0], parts)


def _compare_parts(subject: Subject, one: Gradients, two: Gradients, parts: list[Batch]) -> Finding:
    """Compare the gradients without clipping, and then as they are."""
    ratio = length(two) / length(one)
    clipped = apart(_gradient(subject, [*parts], clip=True), _gradient(subject, [_joined(parts)], clip=True))
    distance = apart(one, two)
    evidence = {
        "distance between directions": distance,
        "length in parts / in one": ratio,
        "distance when clipped": clipped,
    }
    if not distance < ALARM or not 0.98 < ratio < 1.02:
        last = apart(two, _gradient(subject, parts[1:]))
        guess = (
            "only the last part counts: gradients are zeroed between parts"
            if last < NOISE
            else "each part is averaged by itself, and parts have different numbers of predicted tokens"
            if not distance < ALARM
            else f"the sum over parts is {ratio:.3g} times too long"
        )
        return accumulation_equivalence.problem(
            f"the same rows in 2 parts give a gradient {distance:.2g} away in direction and "
            f"{ratio:.3g} times "
            f"as long as in one; expected 0 and 1: {guess}",
            evidence,
            why="The result depends on how a batch was cut up, and short texts weigh more than long ones.",
            fix="Add up the summed losses of all parts and divide once, by all that is predicted "
            "in the batch.",
            where="the training step",
        )
    if not clipped < ALARM:
        return accumulation_equivalence.problem(
            f"clipped, the same rows in 2 parts give a gradient {clipped:.2g} away in "
            "direction from one batch's; "
            "expected 0: each part is clipped by itself",
            evidence,
            why="Parts with a large gradient lose their weight in the sum.",
            fix="Clip once, after the last part's backward.",
            where="the training step",
        )
    return accumulation_equivalence.ok(
        "a batch in two uneven parts has the gradient that it has in one", evidence
    )


def _record(subject: Subject, parts: list[Batch], *, clip: bool = False, seed: int = 0) -> Recording:
    return watch(subject, *learner(subject), parts, clip=clip, seed=seed)


def _gradient(subject: Subject, parts: list[Batch], *, clip: bool = False, seed: int = 0) -> Gradients:
    return one_gradient(_record(subject, parts, clip=clip, seed=seed))


def _uneven_parts(subject: Subject) -> tuple[Batch, list[Batch]]:
    """Cut a batch in two: the rows where most is predicted, and those with the least; as many of each."""
    batch = max(subject.batches, key=row_count)
    rows = min(row_count(batch), ROWS) // 2 * 2
    if rows < 2:
        raise NotApplicable("no batch has two rows to put into two parts")
    batch = some_rows(batch, range(rows))
    order = torch.argsort(_predicted(batch), descending=True, stable=True)
    parts = [some_rows(batch, order[: rows // 2]), some_rows(batch, order[rows // 2 :])]
    return some_rows(batch, order), parts


def _predicted(batch: Batch) -> Tensor:
    """Return (rows,): how much is predicted, or at least read, in each row."""
    labels = batch.get("labels")
    if (
        isinstance(labels, Tensor)
        and labels.dim() == 2
        and labels.size(1) > 1
        and bool((labels == -100).any())
    ):
        return (labels != -100).sum(dim=1)
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(dim=1)
    return torch.zeros(row_count(batch))


def _joined(parts: list[Batch]) -> Batch:
    size = row_count(parts[0])
    return {
        name: torch.cat([part[name] for part in parts])
        if isinstance(value, Tensor) and value.dim() and value.size(0) == size
        else value
        for name, value in parts[0].items()
    }


def _rows_are_independent(subject: Subject, whole: Batch, part: Batch) -> None:
    """Refuse a model whose scores depend on the other rows: its parts differ whatever the step does."""
    if "input_ids" not in whole:
        return
    mask = "attention_mask" if "attention_mask" in whole and subject.takes_mask() else None
    model = subject.model(jitter=True)
    with torch.no_grad():
        together = subject.scores(model, whole["input_ids"], whole[mask] if mask else None)
        alone = subject.scores(model, part["input_ids"], part[mask] if mask else None)
    if float((together[: len(alone)] - alone).abs().max()) > 1e-3 * max(float(together.std()), 1e-12):
        raise NotApplicable("a row's scores depend on the rows beside it")


@check(family="training", component="training step", needs=(*NEEDS, "loss"), likelihood=0.7)
def step_follows_the_loss(subject: Subject) -> Finding:
    """Is the gradient at the step, and the number returned, that of the mean loss?"""
    batch = two_batches(subject)[0]
    record = _record(subject, [batch])
    taken = one_gradient(record)
    model, _ = learner(subject)
    assert subject.loss is not None
    with seeded(0), NoDropout():
        loss = subject.loss(model, {name: value for name, value in batch.items()})
        loss.backward()  # type: ignore[no-untyped-call]
    asked = gradients_of(model)
    if not length(asked) > 0:
        raise NotApplicable("the loss has no gradient")
    distance, ratio = apart(taken, asked), length(taken) / length(asked)
    evidence = {"distance between directions": distance, "length of step's / of loss's": ratio}
    if not distance < 1.0:
        return step_follows_the_loss.problem(
            f"the step's gradient is {distance:.2g} away in direction from the loss's; expected 0"
            + (": it goes uphill" if distance > 1.9 else ""),
            evidence,
            why="The number that is watched is not the one that is trained on.",
            fix="Compute the loss in one function, and call backward on what it returns.",
            likelihood=0.5,
        )
    predicted = {"rows": row_count(batch), "predicted tokens": int(_predicted(batch).sum())}
    summed = next((what for what, size in predicted.items() if _is_sum(ratio, size, subject)), None)
    if summed is not None and distance < ALARM:
        return step_follows_the_loss.problem(
            f"the gradient is {ratio:.4g} times as long as the mean loss's: it is a sum over the {summed}",
            evidence,
            why="The step's length grows with the batch; clipping then cuts every step, and "
            "decides it alone.",
            fix=f"Divide the loss, or the gradients, by the number of {summed}.",
            likelihood=0.6,
        )
    return _returned(record.returned, loss.item(), predicted, evidence)


def _is_sum(ratio: float, size: int, subject: Subject) -> bool:
    slack = 0.2 if subject.by_token else 0.02  # a language model predicts a token less for each row
    return size >= 4 and 1 - slack < ratio / size < 1.02


def _returned(returned: Any, loss: float, sizes: dict[str, int], evidence: dict[str, float]) -> Finding:
    """Judge the number that the step returned, if it is one.

    What a step returns for a batch in parts is not judged: many return the last part's loss, for a glance.
    """
    number = _number(returned)
    if number is None or not loss:
        return step_follows_the_loss.ok("the step's gradient is that of the mean loss", evidence)
    evidence = {**evidence, "returned": number, "mean loss": loss}
    summed = next(
        (what for what, size in sizes.items() if size >= 4 and abs(number / loss / size - 1) < 0.01), None
    )
    if summed is not None:
        return step_follows_the_loss.problem(
            f"the step returns {number:.4g}, the sum over the {summed}; the mean loss is {loss:.4g}",
            evidence,
            why="The curve that is drawn follows the size of the batches.",
            fix=f"Divide what is returned by the number of {summed}.",
            likelihood=0.2,
        )
    return step_follows_the_loss.ok("the step's gradient is that of the mean loss", evidence)


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
