"""Counts, percentiles and seconds, out of what the sending process told."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from companion.deployment.loadtest.report import (
    GeneratorUse,
    LoadCounts,
    LoadSecond,
    LoadStep,
    Patience,
    Trouble,
)
from companion.deployment.loadtest.samples import LoadSample, StageRecord
from companion.inference.intervals import percentile

__all__ = [
    "PERCENTS",
    "generator_use",
    "latencies_of",
    "measured",
    "nearest_rank",
    "patience_of",
    "seconds_of",
    "step_of",
    "troubles_of",
]

PERCENTS = (50.0, 90.0, 95.0, 99.0)
_BUSY = 0.85
"""Share of a core from which on the generator is taken for the limit: the rest is not always to be had."""
_FEW = 100
"""A second's p99 of fewer requests would be its slowest one."""


def measured(record: StageRecord) -> list[LoadSample]:
    """Return the attempts whose request was due after the warm-up, in the order in which they were due."""
    return sorted(sample for sample in record.samples if record.warmup <= sample.due < record.reached)


def step_of(record: StageRecord) -> LoadStep:
    """Count and measure one stage, without saying whether the server followed.

    Parameters
    ----------
    record : StageRecord

    Returns
    -------
    LoadStep
    """
    samples = measured(record)
    seconds = max(record.reached - record.warmup, 1e-9)
    answered = sum(
        sample.outcome == "ok" and record.warmup <= sample.answered <= record.reached
        for sample in record.samples
    )
    waited = [sample.answered - sample.due for sample in samples if sample.outcome in ("ok", "unsent")]
    service = [
        sample.answered - sample.sent
        for sample in samples
        if sample.outcome == "ok" and sample.sent is not None
    ]
    return LoadStep(
        record.rate,
        seconds,
        answered / seconds,
        _counts(samples),
        tuple(percentile(waited, percent) for percent in PERCENTS),
        tuple(percentile(service, percent) for percent in PERCENTS),
        generator_use(record),
    )


def _counts(samples: Sequence[LoadSample]) -> LoadCounts:
    outcomes = Counter(sample.outcome for sample in samples)
    firsts = [sample for sample in samples if sample.attempt == 0]
    return LoadCounts(
        due=len(firsts),
        ok=outcomes["ok"],
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        unsent=outcomes["unsent"],
        late=sum(sample.late for sample in firsts),
    )


def latencies_of(record: StageRecord) -> tuple[float, ...]:
    """Return the seconds from due to answer of all that were measured and answered."""
    return tuple(sample.answered - sample.due for sample in measured(record) if sample.outcome == "ok")


def troubles_of(records: Iterable[StageRecord]) -> tuple[Trouble, ...]:
    """Count each kind of answer that is none, most frequent first."""
    found = Counter(
        (sample.outcome, sample.status, sample.title)
        for record in records
        for sample in measured(record)
        if sample.outcome in ("refused", "failed")
    )
    return tuple(Trouble(*kind, count) for kind, count in sorted(found.items(), key=lambda item: -item[1]))


def patience_of(records: Iterable[StageRecord], *, honoured: bool) -> Patience:
    """Collect what the refusals said of trying again."""
    waits = [
        sample.retry_after
        for record in records
        for sample in measured(record)
        if sample.retry_after is not None
    ]
    return Patience(honoured, len(waits), min(waits, default=None), max(waits, default=None))


def generator_use(record: StageRecord) -> GeneratorUse:
    """Say what the sending process needed while it was measured, and whether that was too much.

    Parameters
    ----------
    record : StageRecord

    Returns
    -------
    GeneratorUse
    """
    points = [point for point in record.cpu if record.warmup <= point[0] <= record.reached]
    cpu, busiest = _share(points[:1] + points[-1:]), 0.0
    for first, last in _spans(points):
        busiest = max(busiest, _share([first, last]))
    lags = sorted(lag for at, lag in record.lags if record.warmup <= at <= record.reached + 1)
    middle, far = nearest_rank(lags, 0.5), nearest_rank(lags, 0.99)
    limit = f"it used {cpu:.0%} of the one core that it can use" if cpu >= _BUSY else None
    return GeneratorUse(cpu, max(busiest, cpu), middle or 0.0, far or 0.0, limit)


def _share(points: Sequence[tuple[float, float]]) -> float:
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return 0.0
    return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def _spans(
    points: Sequence[tuple[float, float]],
) -> Iterable[tuple[tuple[float, float], tuple[float, float]]]:
    """Pair each point with the first one that is at least a second later."""
    end = 0
    for point in points:
        while end < len(points) and points[end][0] < point[0] + 1:
            end += 1
        if end == len(points):
            return
        yield point, points[end]


def nearest_rank(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest of sorted values that is not below a share of them; None of nothing."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else None


def seconds_of(records: Sequence[StageRecord]) -> tuple[LoadSecond, ...]:
    """Describe the test second by second; what happens between two steps belongs to the one before.

    Parameters
    ----------
    records : sequence of StageRecord

    Returns
    -------
    tuple of LoadSecond
    """
    found: list[LoadSecond] = []
    for record in records:
        offset = len(found)
        count = max(1, math.ceil(record.reached - 1e-6))
        due, ok, refused, failed = ([0] * count for _ in range(4))
        came = {"ok": ok, "refused": refused, "failed": failed}
        waits: list[list[float]] = [[] for _ in range(count)]
        for sample in record.samples:
            place = min(int(sample.due), count - 1)
            due[place] += sample.attempt == 0
            if sample.outcome == "ok":
                waits[place].append(sample.answered - sample.due)
            if sample.outcome in came and sample.answered < count:
                came[sample.outcome][int(sample.answered)] += 1
        for place in range(count):
            ordered = sorted(waits[place])
            found.append(
                LoadSecond(
                    offset + place,
                    min(1.0, record.reached - place) if record.reached > place else 1.0,
                    place < record.warmup,
                    record.rate,
                    record.users,
                    due[place],
                    ok[place],
                    refused[place],
                    failed[place],
                    nearest_rank(ordered, 0.5),
                    nearest_rank(ordered, 0.99) if len(ordered) >= _FEW else None,
                    ordered[-1] if ordered else None,
                )
            )
    return tuple(found)
