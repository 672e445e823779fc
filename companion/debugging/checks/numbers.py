"""Checks that numbers stay numbers: NaN and infinity, in a model and in a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.data import Batch
from companion.debugging.checks.probing import component_of
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.nonfinite import first_nonfinite, first_nonfinite_gradient, statistics_of
from companion.debugging.subject import Subject, seeded
from companion.training.records import StepRecord

__all__: list[str] = []


@check(family="dynamics", component="loss", needs=("batches",), likelihood=0.7)
def finite_activations(subject: Subject) -> Finding:
    """Does the model make NaN or infinity out of finite numbers, forward or on the way back?"""
    model, looked = subject.model(), 0
    for batch in list(subject.batches)[:4]:
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if ids is None:
            raise NotApplicable("its batches hold no input_ids")
        mask = mask if subject.takes_mask() else None
        with torch.no_grad():
            if finding := _bad_forward(subject, model, ids, mask):
                return finding
        looked += 1
    if subject.loss is not None and (finding := _bad_backward(subject, model, subject.batches[0])):
        return finding
    return finite_activations.ok(f"all numbers of {looked} batches are finite", {"batches": looked})


def _bad_forward(subject: Subject, model: nn.Module, ids: Tensor, mask: Tensor | None) -> Finding | None:
    scores = subject.scores(model, ids, mask)
    seen = statistics_of(scores)
    count = seen.nan + seen.infinite + seen.minus_infinite
    if not seen.bad() and seen.minus_infinite < seen.elements:  # single scores may be ruled out by -inf
        return None
    found = first_nonfinite(model, lambda model: subject.scores(model, ids, mask)) or first_nonfinite(
        model, lambda model: subject.scores(model, ids, mask), minus_infinity=True
    )
    name = f"{found.module or 'the model'} ({found.kind})" if found else "the scores"
    said = f": it was given {found.inputs}, and gave {found.outputs}" if found else ""
    if found and found.parameters:
        said += f"; its own {', '.join(found.parameters)} is not finite"
    return finite_activations.problem(
        f"{name} is the first to give a number that is not finite{said}",
        {"scores": seen.elements, "scores not finite": count},
        where=found.module if found else "",
        component=component_of(found.module, model.get_submodule(found.module)) if found else None,
        why="NaN spreads: one in a batch is in every weight after the next step.",
        fix="Look for a division by zero, the logarithm of zero, a row of attention that sees nothing and is "
        "masked with minus infinity, or a number too large for the dtype.",
    )


def _bad_backward(subject: Subject, model: nn.Module, batch: Batch) -> Finding | None:
    loss: Any = subject.loss
    with seeded(0):
        value = loss(model, batch)
    if not math.isfinite(float(value.detach())):
        return finite_activations.problem(
            f"the loss of the first batch is {float(value.detach())}, though all its scores are finite",
            {"loss": float(value.detach())},
            where="the loss",
            why="Its gradient puts NaN into every weight.",
            fix="Is there a target left in every batch, and does the loss take scores, not probabilities?",
        )
    with seeded(0):
        found = first_nonfinite_gradient(model, lambda model: loss(model, batch))
    if found is None:
        return None
    return finite_activations.problem(
        f"the gradient of {found.parameter} is the first that is not finite: {found.gradient}",
        {"loss": float(value.detach()), "not finite": found.gradient.nan + found.gradient.infinite},
        where=found.parameter,
        component=component_of(found.parameter, model),
        why="The next step puts it into the weights.",
        fix="Between this parameter and the loss something has no finite slope: a root or a norm at zero, "
        "a power of zero, a masked branch that divides by zero.",
    )


@check(family="dynamics", component="training step", needs=("steps",), likelihood=0.6)
def finite_run(subject: Subject) -> Finding:
    """Does the loss stay a number, and the gradient with it?"""
    records = subject.steps
    losses = [record for record in records if not math.isfinite(record.loss)]
    norms = [record for record in records if not math.isfinite(record.grad_norm)]
    evidence = {"steps": float(len(records)), "losses": float(len(losses)), "norms": float(len(norms))}
    advice = (
        "Find the first module that makes it (companion.debugging.nonfinite). Then: a lower learning rate, "
        "warm-up, clipping; for float16 a loss scaler, or bfloat16."
    )
    if losses:
        first = losses[0]
        lasting = len(losses) == sum(record.step >= first.step for record in records) and len(losses) > 1
        after = "and stays so" if lasting else f"as in {len(losses)} of {len(records)} steps"
        finite = math.isfinite(first.grad_norm)
        return finite_run.problem(
            f"the loss is {first.loss} at step {first.step}, {after}",
            {**evidence, "first step": float(first.step)},
            component="loss" if finite or not lasting else "training step",
            where=f"step {first.step}",
            why="Once NaN is in the weights, no later step gets it out.",
            fix="Does this batch hold a single target? " + advice if finite else advice,
        )
    # A scaler of float16 skips steps that overflow until it has found its scale: weights stay untouched.
    few = len(norms) <= max(2, len(records) // 10) and all(map(math.isfinite, _norms(records[-3:])))
    if norms and not few:
        return finite_run.problem(
            f"the gradient norm is {norms[0].grad_norm} at step {norms[0].step}, and in {len(norms)} of "
            f"{len(records)} steps",
            {**evidence, "first step": float(norms[0].step)},
            where=f"step {norms[0].step}",
            why="These steps are lost at best; without a scaler that skips them the weights become NaN.",
            fix=advice,
        )
    skipped = f"; {len(norms)} steps were skipped, as a scaler of float16 does" if norms else ""
    return finite_run.ok(f"the losses of all {len(records)} steps are finite{skipped}", evidence)


def _norms(records: Sequence[StepRecord]) -> list[float]:
    return [record.grad_norm for record in records]
