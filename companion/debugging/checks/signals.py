"""Checks on what else a run records: gradient norms, learning rates, attention, throughput.

The healthy bands are rules of thumb. A norm outside of one is an alarm only together with a run that shows
it: plenty of right models live outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from companion.debugging.checks.curves import FEW, constant_guess, curve_of, step_seconds
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.subject import Subject
from companion.training.monitoring.health import Thresholds, check_layers
from companion.training.monitoring.observations import HEALTHY_LAYER, HEALTHY_TOTAL, Alarm, Observation

__all__: list[str] = []


def observations_of(subject: Subject) -> Sequence[Observation]:
    """Return what a monitor saw of the run."""
    seen: Sequence[Observation] = getattr(subject, "observations", ())
    if len(seen) < 2:
        raise NotApplicable("no monitor has observed the run (companion.training.monitoring.Monitor)")
    return seen


def _learned(subject: Subject) -> bool:
    """Whether the loss has fallen by a tenth, or ends below what a constant guess gives."""
    curve, guess = curve_of(subject.steps), constant_guess(subject)
    return curve.end < 0.9 * curve.start or (guess is not None and curve.end < 0.9 * guess)


@check(family="dynamics", component="training step", needs=("steps",), likelihood=0.2)
def gradient_norm_healthy(subject: Subject) -> Finding:
    """Is the gradient of a size that a step can use?"""
    norms = [record.grad_norm for record in subject.steps if math.isfinite(record.grad_norm)]
    if len(norms) < FEW:
        raise NotApplicable(f"{len(norms)} finite gradient norms are too few")
    low, high = HEALTHY_TOTAL
    tenth = max(5, len(norms) // 10)
    middle, first, last = median(norms), median(norms[:tenth]), median(norms[-tenth:])
    evidence = {"median": middle, "first": first, "last": last, "low": low, "high": high}
    learned = _learned(subject)
    exploding = last > high and last > 10 * first
    if exploding or middle > 10 * high or (middle > high and not learned):
        said = f"it grows from {first:.3g} to {last:.3g}" if exploding else f"its median is {middle:.3g}"
        return gradient_norm_healthy.problem(
            f"the gradient norm is large: {said}, where {low:g} to {high:g} is usual",
            evidence,
            why="Clipping makes all steps equally long, and without clipping each overshoots.",
            fix="Is the loss a mean and not a sum, are gradients set to zero between steps, are scores "
            "divided by the square root of the head's width? Then: a longer warm-up, a lower rate.",
        )
    # A run that has learned its texts has small gradients, and should.
    if middle < HEALTHY_LAYER[0] and not learned:
        return gradient_norm_healthy.problem(
            f"the median of the gradient norm is {middle:.3g}, where {low:g} to {high:g} is usual, and the "
            "loss has not fallen",
            evidence,
            why="Next to no gradient reaches the weights.",
            fix="Is something detached or saturated on the way, is the loss divided twice (by the "
            "micro-batches and by a mean), are weights so small that every output is the same?",
        )
    remark = "" if low <= middle <= high else f", outside the usual {low:g} to {high:g}, in a run that learns"
    return gradient_norm_healthy.ok(f"the median of the gradient norm is {middle:.3g}{remark}", evidence)


@check(family="dynamics", component="layers", likelihood=0.6)
def layers_learn(subject: Subject) -> Finding:
    """Does every layer get a gradient, and change?"""
    alarms = _alarms(subject, "dead layer")
    seen = observations_of(subject)
    if not alarms:
        return layers_learn.ok(
            f"all {len(seen[-1].grad_norm_by_layer)} layers are moving at step {seen[-1].step}",
            {f"norm of {name}": norm for name, norm in seen[-1].grad_norm_by_layer.items()},
        )
    worst = alarms[0]
    return layers_learn.problem(
        f"{', '.join(alarm.where for alarm in alarms)}: {worst.value:.2g}, against {worst.threshold:.2g} "
        f"that a living layer has, at step {worst.step}",
        {alarm.where: alarm.value for alarm in alarms},
        where=worst.where,
        why="A layer that does not move keeps its random weights.",
        fix=worst.advice[0].upper() + worst.advice[1:],
    )


@check(family="dynamics", component="attention", likelihood=0.3)
def attention_stays_open(subject: Subject) -> Finding:
    """Does attention collapse to one token in the course of the run?"""
    seen = observations_of(subject)
    if not any(observation.attention_entropy_by_layer for observation in seen):
        raise NotApplicable("the model gave no attention weights")
    alarms = _alarms(subject, "attention collapse")
    last = seen[-1].attention_entropy_by_layer
    if not alarms:
        return attention_stays_open.ok(
            f"the lowest attention entropy at step {seen[-1].step} is {min(last.values(), default=1):.2f} of "
            "the maximum",
            dict(last),
        )
    worst = min(alarms, key=lambda alarm: alarm.value)
    begun = max(o.attention_entropy_by_layer.get(worst.where, 0.0) for o in seen)
    return attention_stays_open.problem(
        f"the attention entropy of {worst.where} falls from {begun:.2f} to {worst.value:.2f} of the maximum",
        {alarm.where: alarm.value for alarm in alarms},
        where=worst.where,
        why="Each token looks at one other, the softmax is saturated, and little gradient passes it: such "
        "runs stall or diverge.",
        fix="Lower the learning rate, lengthen the warm-up; are scores divided by the square root of the "
        "head's width?",
    )


def _alarms(subject: Subject, kind: str) -> list[Alarm]:
    """Return what the monitor would say of the last observation."""
    seen = observations_of(subject)
    peak = max(item.learning_rate for items in (subject.steps, seen) for item in items)
    return [alarm for alarm in check_layers(seen, Thresholds(), peak_rate=peak) if alarm.kind == kind]


@check(family="dynamics", component="schedule", needs=("steps",), likelihood=0.8)
def learning_rate_moves(subject: Subject) -> Finding:
    """Was the learning rate above zero, and its warm-up over, while there were steps to take?"""
    rates = [record.learning_rate for record in subject.steps]
    if len(rates) < FEW:
        raise NotApplicable(f"{len(rates)} steps are too few to see a schedule")
    zero = sum(rate == 0 for rate in rates)
    peak = max(rates)
    evidence = {"first": rates[0], "peak": peak, "last": rates[-1], "steps at zero": float(zero)}
    if zero > max(2, len(rates) // 20):
        first = next(r.step for r in subject.steps[1:] if r.learning_rate == 0)
        return learning_rate_moves.problem(
            f"the learning rate is zero in {zero} of {len(rates)} steps, from step {first} on",
            evidence,
            where=f"step {first}",
            why="Those steps cost time and change nothing.",
            fix="Give the schedule the number of optimizer steps of the whole run, and step it once for each "
            "optimizer step: not for each micro-batch.",
        )
    rising = all(later >= earlier for earlier, later in pairwise(rates))
    if rising and rates[-1] > 1.5 * rates[0] and not _geometric(rates):
        return learning_rate_moves.problem(
            f"the learning rate still rises at the last step, from {rates[0]:.2g} to {peak:.2g}",
            evidence,
            where="warm-up",
            why="The run ends before its warm-up does: it never works at its full rate.",
            fix="Shorten the warm-up to about a tenth of the optimizer steps; is the schedule stepped once "
            "an epoch instead of once a step?",
        )
    if trouble := _early_trouble(subject, rates):
        return learning_rate_moves.problem(
            f"the rate is at its peak of {peak:.2g} from the first step on, and {trouble}",
            evidence,
            where="step 1",
            why="Adam's first steps are as long as its rate, in every direction, before it knows any scale.",
            fix="Let the rate rise from zero over the first tenth of the steps.",
            likelihood=0.4,
        )
    return learning_rate_moves.ok(
        f"the rate goes from {rates[0]:.2g} over {peak:.2g} to {rates[-1]:.2g} in {len(rates)} steps",
        evidence,
    )


def _geometric(rates: Sequence[float]) -> bool:
    """Whether each rate is the one before it times the same factor: a search for a rate, not a warm-up."""
    if min(rates) <= 0:
        return False
    ratios = [later / earlier for earlier, later in pairwise(rates)]
    return max(ratios) < 1.01 * min(ratios)


def _early_trouble(subject: Subject, rates: Sequence[float]) -> str:
    """Say how a run without warm-up shows that it needed one: its loss first jumps up."""
    if rates[0] < max(rates) or subject.steps[0].step > 1 or len(rates) < 2 * FEW:
        return ""
    curve = curve_of(subject.steps)
    # The very first loss is that of untouched weights.
    first, early = subject.steps[0].loss, [record.loss for record in subject.steps[1:10]]
    jump = median(sorted(early)[-5:]) - first
    if not math.isfinite(jump) or jump < max(6 * curve.noise, 0.5 * abs(first)):
        return ""
    return f"the loss jumps from {first:.3g} to {first + jump:.3g} within ten steps"


@check(family="dynamics", component="batching", needs=("steps",), likelihood=0.3)
def throughput_holds(subject: Subject) -> Finding:
    """Do steps take as long at the end as at the start, and is the time spent in them?"""
    records = subject.steps
    rates = [record.examples_per_second for record in records]
    if len(rates) < 5 * FEW or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise NotApplicable(f"{len(rates)} steps with a throughput are too few to see it change")
    seconds = [value for value in step_seconds(records) if value > 0]
    if len(seconds) < 0.9 * len(rates):
        raise NotApplicable("the throughput of the records is not a mean since the start")
    size = len(seconds) // 4
    quarters = [median(seconds[i * size : (i + 1) * size]) for i in range(4)]
    usual = median(seconds)
    slow = [value for value in seconds if value > 5 * usual]
    waiting = sum(slow) / sum(seconds)
    slower = quarters[3] / quarters[0]
    evidence = {"slower by": slower, "share of time in slow steps": waiting, "slow steps": float(len(slow))}
    if slower > 3 and quarters == sorted(quarters):
        return throughput_holds.problem(
            f"a step takes {slower:.1f} times as long in the last quarter of the run as in the first",
            evidence,
            why="Something grows with every step; memory usually grows with it.",
            fix="Keep numbers (loss.item()) and not tensors with their graphs; look for lists and hooks that "
            "are added to in each step, for memory that is swapped, and for texts sorted by length.",
        )
    if waiting > 0.5 and len(slow) >= FEW // 2:
        return throughput_holds.problem(
            f"{waiting:.0%} of the time goes into {len(slow)} of {len(seconds)} steps, each at least five "
            "times as long as usual",
            evidence,
            why="For most of its time the run waits, and the device with it.",
            fix="Do workers of the data loader keep up (more of them, tokenize once, larger prefetch)? Are "
            "checkpoints or logs written in the step?",
        )
    return throughput_holds.ok(
        f"a step takes {slower:.2f} times as long in the last quarter as in the first", evidence
    )
