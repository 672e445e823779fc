"""Which rate a ramp tries next, and where the knee is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from companion.deployment.loadtest.plan import Ramp
from companion.deployment.loadtest.report import Knee, LoadStep

__all__ = ["judged", "knee_of", "next_rate"]

_FOLLOWS = 0.95
"""Answers per request due from which on a server follows."""
_IN_FLIGHT = 3
"""Requests that may be unanswered at the end of a step because they came last."""
_REFUSALS = 0.01
_NARROW = 1.03
"""Two rates closer than this cannot be told apart by steps of seconds."""


def judged(step: LoadStep) -> LoadStep:
    """Say whether the server followed the rate of a step.

    Parameters
    ----------
    step : LoadStep

    Returns
    -------
    LoadStep
        With `broke`: None when it followed.
    """
    counts, answers = step.counts, step.throughput * step.seconds
    broke = None
    if counts.refused > _REFUSALS * counts.due:
        broke = f"{counts.refused} of {counts.due} requests were refused"
    elif counts.failed > _REFUSALS * counts.due:
        broke = f"{counts.failed} of {counts.due} requests failed"
    elif answers < _FOLLOWS * counts.due - _IN_FLIGHT:
        broke = f"{answers:.0f} of {counts.due} requests were answered in the same time"
    return replace(step, broke=broke)


def next_rate(ramp: Ramp, steps: Sequence[LoadStep]) -> float | None:
    """Choose the next rate.

    Parameters
    ----------
    ramp : Ramp
    steps : sequence of LoadStep
        Judged, in the order in which they were run.

    Returns
    -------
    float or None
        None when there is nothing more to learn.
    """
    if not steps:
        return ramp.start
    low, high = _bounds(steps)
    if high is None:
        last = steps[-1]
        assert last.rate is not None
        if last.rate >= ramp.highest:
            return None
        higher = last.rate * ramp.factor if ramp.step is None else last.rate + ramp.step
        return min(higher, ramp.highest)
    first_break = next(place for place, step in enumerate(steps) if step.broke is not None)
    if low is None or len(steps) - 1 - first_break >= ramp.refine or high <= low * _NARROW:
        return None
    if steps[first_break].generator.limit is not None:
        return None
    return math.sqrt(low * high) if ramp.step is None else (low + high) / 2


def knee_of(ramp: Ramp, steps: Sequence[LoadStep]) -> Knee:
    """Say where the server stopped to follow.

    Parameters
    ----------
    ramp : Ramp
    steps : sequence of LoadStep
        Judged; at least one.

    Returns
    -------
    Knee
    """
    low, high = _bounds(steps)
    most = max(step.throughput for step in steps)
    if high is None:
        reason = "all rates were followed" if low == ramp.highest else "the ramp was stopped"
        return Knee(low, None, most, reason, False)
    broken = next(step for step in steps if step.rate == high and step.broke is not None)
    if broken.generator.limit is not None:
        reason = f"{broken.broke}; but the generator may be the cause: {broken.generator.limit}"
        return Knee(low, high, most, reason, False)
    return Knee(low, high, most, str(broken.broke), True)


def _bounds(steps: Sequence[LoadStep]) -> tuple[float | None, float | None]:
    """Return the highest rate that was followed below the lowest that was not, and that."""
    high = min(
        (step.rate for step in steps if step.broke is not None and step.rate is not None), default=None
    )
    followed = [
        step.rate
        for step in steps
        if step.broke is None and step.rate is not None and (high is None or step.rate < high)
    ]
    return max(followed, default=None), high
