"""Checks of the schedule: the shape of the learning rate over a run, and how it starts."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import torch

from companion.debugging.anatomy import attention_parts, block_lists, observe
from companion.debugging.checks.controls import at_the_start, loss_on
from companion.debugging.checks.learning import one_batch
from companion.debugging.checks.optimizers import first_step, made, rate_of
from companion.debugging.checks.registry import NotApplicable, check
from companion.debugging.finding import Finding
from companion.debugging.spying import copied
from companion.debugging.subject import Subject, seeded

__all__ = ["factors_of", "has_post_norm", "schedule_shape", "warm_up"]

_NEEDS = ("make_model", "make_optimizer", "make_schedule")
_SCHEDULED_STEPS = 200
_FIRST_STEPS = 5
_RISKY_RATE = 1e-3
"""Of the size at which layers with a norm after each sum fail without warm-up (Xiong et al., 2020)."""


@check(family="training", component="schedule", needs=_NEEDS, likelihood=0.6)
def schedule_shape(subject: Subject) -> Finding:
    """Does the learning rate rise, fall, and last as long as the training?"""
    factors, _ = factors_of(subject)
    peak = max(factors)
    if not peak > 0:
        return schedule_shape.problem(
            "the learning rate is zero at all steps",
            {"highest factor": peak},
            why="Nothing is learned.",
            fix="Check what the schedule multiplies.",
        )
    zero = [factor < 1e-6 * peak for factor in factors]
    tail = next((index for index, is_zero in enumerate(reversed(zero)) if not is_zero), 0) / len(factors)
    head = next((index for index, is_zero in enumerate(zero) if not is_zero), 0)
    evidence = {
        "highest / chosen rate": peak,
        "last / highest": factors[-1] / peak,
        "share of steps at zero at the end": tail,
        "steps at zero at the start": float(head),
    }
    said = _wrong_shape(factors, evidence)
    if said is None:
        return schedule_shape.ok(
            f"it starts at {factors[0]:.2g}, is {peak:.2g} at most and ends at "
            f"{factors[-1]:.2g} of the chosen rate",
            evidence,
        )
    summary, why, fix, likelihood = said
    return schedule_shape.problem(summary, evidence, why=why, fix=fix, likelihood=likelihood)


def _wrong_shape(factors: list[float], evidence: dict[str, float]) -> tuple[str, str, str, float] | None:
    """Return what is wrong, what it costs, what to do and how likely it matters; None if nothing is wrong."""
    peak, tail, head = (
        max(factors),
        evidence["share of steps at zero at the end"],
        factors.index(max(factors)),
    )
    count = "Make the schedule of the number of optimizer steps, and step it once for each of them."
    if any(factor < 0 or not math.isfinite(factor) for factor in factors):
        return "the learning rate is negative or not finite", "The model is pushed uphill.", count, 0.9
    if evidence["steps at zero at the start"] > 1:
        steps = int(evidence["steps at zero at the start"])
        return f"the first {steps} steps have a learning rate of zero", "They teach nothing.", count, 0.6
    if tail > 0.1:
        return (
            f"the learning rate is zero in the last {tail:.0%} of the steps",
            "The run ends long before it stops.",
            count,
            0.6,
        )
    if peak > 1.5:
        return (
            f"the learning rate goes up to {peak:.3g} times the chosen one",
            "A rate that was chosen with care is not the one that is used.",
            "Let the schedule's factor be 1 at most.",
            0.6,
        )
    if peak < 0.5:
        return (
            f"the learning rate never gets above {peak:.3g} of the chosen one",
            "The run is slower than its settings say.",
            "Let the schedule's factor reach 1 after the warm-up.",
            0.5,
        )
    bottom = min(range(head, len(factors)), key=lambda step: factors[step])
    climb = [after - before for before, after in zip(factors[bottom:], factors[bottom + 1 :], strict=False)]
    if (
        factors[bottom] < 0.1 * peak
        and climb
        and max(factors[bottom:]) > 0.5 * peak
        and max(climb) < 0.3 * peak
    ):
        return (
            f"the learning rate falls to {factors[bottom]:.2g} by step {bottom} of "
            f"{len(factors)}, and rises again",
            "A cosine that goes on past its end undoes what it settled.",
            count,
            0.5,
        )
    return _wrong_warm_up(factors, head)


def _wrong_warm_up(factors: list[float], head: int) -> tuple[str, str, str, float] | None:
    """Judge where a schedule that rises has its highest point, and whether one that falls gets down."""
    peak, steps = max(factors), len(factors)
    rising = factors[head] > factors[0] * 1.05
    if rising and head > 0.6 * steps and factors[-1] > 0.5 * peak:
        return (
            f"the learning rate rises for {head} of {steps} steps",
            "The warm-up takes up the run.",
            "Warm up for a tenth of the steps or less, and come down from there.",
            0.5,
        )
    falling = [before - after for before, after in zip(factors[head:], factors[head + 1 :], strict=False)]
    steady = bool(falling) and min(falling) >= 0 and sum(fall > 0 for fall in falling) > 0.9 * len(falling)
    if steady and 0.6 * peak < factors[-1] < 0.98 * peak:
        return (
            f"the learning rate falls at every step, and only to {factors[-1] / peak:.2g} of its highest",
            "The run ends before the schedule does, without its quiet last part.",
            "Make the schedule of the number of optimizer steps that are really taken.",
            0.3,
        )
    return None


@check(family="training", component="schedule", needs=_NEEDS, likelihood=0.2)
def warm_up(subject: Subject) -> Finding:
    """Does Adam start slowly where a fast start is risky?"""
    factors, optimizer = factors_of(subject)
    if "betas" not in optimizer.param_groups[0]:
        raise NotApplicable("the optimizer is no Adam")
    if not subject.fresh:
        raise NotApplicable("the model is trained already")
    # An Adam that waits until it knows the size of gradients, as RAdam does, warms itself up.
    if first_step(*made(subject), gradient=100.0) > 10 * first_step(*made(subject), gradient=1.0):
        raise NotApplicable("the optimizer's first steps are as short as its gradients")
    base = max(float(group.get("initial_lr") or rate_of(group)) for group in optimizer.param_groups)
    rate = base * factors[0]
    evidence = {"first / highest": factors[0] / max(max(factors), 1e-30), "first rate": rate}
    if factors[0] <= 0.9 * max(factors):
        said = f"the first step has {factors[0]:.2g} of the chosen rate {base:.2g}"
        return warm_up.ok(said, evidence)
    rise, gentle = _highest(subject, factors[0]), _highest(subject, 0.1 * factors[0])
    evidence |= {"highest / first loss": rise, "at a tenth of the rate": gentle}
    if rise > 1.2 and gentle < 1.02:
        return _too_fast(
            f"{_FIRST_STEPS} steps on one batch at the first step's learning rate of {rate:.2g} raise its "
            f"loss {rise:.3g} times, and at a tenth of it they do not",
            evidence,
        )
    model = subject.model()
    calls = observe(model, lambda it: subject.scores(it, subject.ids(), None))
    if not attention_parts(model, calls):
        raise NotApplicable("no attention was found, and nothing else is known to need a slow start")
    post = has_post_norm(subject)
    evidence["post-norm"] = float(post)
    if post and rate > 0.99 * _RISKY_RATE:
        return _too_fast(
            f"the first step has the full learning rate of {rate:.2g}, and layers have a norm after each "
            "sum; expected a rise over the first steps",
            evidence,
        )
    return warm_up.ok(
        f"the first step has the full rate of {rate:.2g}, which layers like these bear", evidence
    )


def _too_fast(said: str, evidence: dict[str, float]) -> Finding:
    return warm_up.problem(
        said,
        evidence,
        why="Adam's first steps are all of full length, on means of one or two gradients; with a norm after "
        "each sum the gradients near the output are large then (Xiong et al., 2020).",
        fix="Let the learning rate rise over the first 5 to 10% of the steps, or lower it.",
    )


def _highest(subject: Subject, factor: float) -> float:
    """Return by how much the loss of one batch is above its first, at most, in a few first steps on it.

    NaN where there is no loss, no step or no batch.
    """
    if subject.loss is None or subject.train_step is None or not len(subject.batches):
        return math.nan
    batch = one_batch(subject)
    losses = [loss_on(subject, subject.model(), batch)]
    model, optimizer = at_the_start(subject, factor=factor)
    for _ in range(_FIRST_STEPS):
        model.train()
        with seeded(0):
            subject.train_step(model, optimizer, [copied(batch)])
        losses.append(loss_on(subject, model, batch))
    highest = max(loss if math.isfinite(loss) else math.inf for loss in losses[1:])
    return highest / losses[0] if losses[0] > 0 else math.nan


def factors_of(subject: Subject, steps: int = _SCHEDULED_STEPS) -> tuple[list[float], torch.optim.Optimizer]:
    """Return the learning rate at each step as a share of the chosen one, and the optimizer."""
    _, optimizer = made(subject)
    group = max(optimizer.param_groups, key=lambda group: rate_of(group))
    chosen = rate_of(group)
    if not chosen > 0:
        raise NotApplicable("the learning rate is zero")
    assert subject.make_schedule is not None
    schedule: Any = subject.make_schedule(optimizer, steps)
    if "metrics" in inspect.signature(schedule.step).parameters:
        raise NotApplicable("the schedule follows a metric, not the steps")
    if type(schedule).__name__ in ("OneCycleLR", "CyclicLR", "CosineAnnealingWarmRestarts"):
        raise NotApplicable(f"{type(schedule).__name__} has a shape and a highest rate of its own")
    factors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer takes no step here: there are no gradients
        for _ in range(steps):
            factors.append(rate_of(group) / chosen)
            schedule.step()
    return factors, optimizer


def has_post_norm(subject: Subject) -> bool:
    """Whether what leaves each block is normalised: every token's vector has a mean square of 1.

    Matrices are moved first. Fresh ones are so small that a block may leave normalised vectors as they came.
    """
    model = subject.model()
    with torch.no_grad(), seeded(0):
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn_like(weight) / math.sqrt(weight.size(-1)))
    calls = observe(model, lambda it: subject.scores(it, subject.ids(), None))
    blocks = {name for places in block_lists(model, calls).values() for name, _ in places}
    outputs = [call.output.detach().float() for call in calls if call.name in blocks]
    squares = [output.square().mean(dim=-1) for output in outputs]
    return subject.fresh and bool(squares) and all(bool(((it - 1).abs() < 0.02).all()) for it in squares)
