"""What happens in a training step, and in which order."""

from __future__ import annotations

import math
from itertools import groupby, pairwise

from companion.debugging.checks.registry import check
from companion.debugging.checks.steps import NEEDS, NOISE, calls_by_step, learner
from companion.debugging.finding import Finding
from companion.debugging.spying import Gradients, Recording, apart, length
from companion.debugging.subject import Subject

__all__ = ["order_of_the_step"]


@check(family="training", component="training step", needs=NEEDS, likelihood=0.9)
def order_of_the_step(subject: Subject) -> Finding:
    """Are there backward, clipping and one step, in this order, with the gradients still there?"""
    first, *more = calls_by_step(subject, *learner(subject))
    several = len(first) > 1 or (bool(more) and len(more[0]) > 1)
    calls = more[0] if several and more else first
    record = calls[-1]
    shown = calls if record.at_step else calls[:1]
    events = " -> ".join(name for name, _ in groupby(event for call in shown for event in call.events))
    evidence = {
        "calls": float(len(calls)),
        "optimizer steps": float(len(record.at_step)),
        "gradient norm at the step": length(record.at_step[-1]) if record.at_step else 0.0,
        "gradient norm afterwards": length(record.left),
    }
    said = _wrong_between(calls) or _wrong_order(record, evidence)
    if said is not None:
        summary, why, fix = said
        return order_of_the_step.problem(
            f"{summary} (seen: {events or 'nothing'})", evidence, why=why, fix=fix, where="the training step"
        )
    if several:
        return order_of_the_step.ok(
            f"in order: {events}, with a step at every {len(calls)} calls; other checks expect one at each",
            evidence,
        )
    return order_of_the_step.ok(f"in order: {events}", evidence)


def _wrong_between(calls: list[Recording]) -> tuple[str, str, str] | None:
    """Return what is wrong between the calls that lead to one step; None if nothing is."""
    if len(calls) < 2 or not calls[-1].at_step:
        return None
    old = [math.hypot(*call.found.values()) for call in calls]
    if old[0] > 0:
        return (
            f"the optimizer takes a step at every {len(calls)} calls, and the gradients of the step before "
            "are still there at the first of them",
            "Each step follows the sum of all batches so far; clipping hides how long that has become.",
            "Call optimizer.zero_grad() after each optimizer.step().",
        )
    pairs = zip(pairwise(calls), old[1:], strict=True)
    if any(before.received and call.found and not norm for (before, call), norm in pairs):
        return (
            f"the optimizer takes a step at every {len(calls)} calls, and gradients are zeroed in between",
            "Only the last calls count: the batches before them are computed for nothing.",
            "Call optimizer.zero_grad() after each optimizer.step(), and at no other call.",
        )
    return None


def _wrong_order(record: Recording, evidence: dict[str, float]) -> tuple[str, str, str] | None:
    """Return what is wrong, what it costs and what to do; None if nothing is."""
    if not record.at_step:
        return (
            f"the optimizer took no step in {evidence['calls']:.0f} calls, expected one at each",
            "The model stays as it was made.",
            "Call optimizer.step() after backward: one call of the training step is one step of the "
            "optimizer, on a batch that may come in parts.",
        )
    if len(record.at_step) > 1:
        return (
            f"the optimizer took {len(record.at_step)} steps on one batch, expected 1",
            "Gradients are used more than once, and a schedule counted in steps no longer fits.",
            "Call optimizer.step() once for each batch, after the last part's backward.",
        )
    norm = evidence["gradient norm at the step"]
    if not math.isfinite(norm):
        return (
            f"the gradient at the step is {norm}",
            "One such step turns the weights into NaN.",
            "Find the first module whose output or gradient is not finite; skip a step that has none.",
        )
    if norm == 0 and record.received:
        return (
            "the gradients were gone when the optimizer took its step: zero_grad came "
            "between backward and step",
            "Only weight decay and old momentum move the model.",
            "Zero the gradients before backward, or after the step.",
        )
    if norm == 0:
        return (
            "no gradient reached the model before the optimizer took its step",
            "The model stays as it was made.",
            "Call loss.backward(), on a loss that was neither detached nor computed under no_grad.",
        )
    step = record.events.index("step")
    changed = _scaled_after(record.at_step[-1], record.left)
    if ("clip" in record.events[step:] and "clip" not in record.events[:step]) or changed is not None:
        found = f": it was multiplied by {changed:.3g} then" if changed is not None else ""
        return (
            f"the gradient is clipped after the step that used it{found}",
            "Nothing is clipped at all: a single odd batch can throw the weights far off.",
            "Clip between backward and optimizer.step().",
        )
    return None


def _scaled_after(at_step: Gradients, left: Gradients) -> float | None:
    """Return the factor by which gradients shrank after the step; None if they did not."""
    used, after = length(at_step), length(left)
    if not 0 < after < 0.999 * used or not apart(at_step, left) < NOISE:
        return None
    return after / used
