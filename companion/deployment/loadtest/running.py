"""The load test itself: looks at the target, sends the stages, and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from companion.deployment.loadtest.asking import bodies, path_of
from companion.deployment.loadtest.driving import Driver
from companion.deployment.loadtest.measuring import (
    latencies_of,
    measured,
    patience_of,
    seconds_of,
    step_of,
    troubles_of,
)
from companion.deployment.loadtest.plan import LoadPlan
from companion.deployment.loadtest.ramping import judged, knee_of, next_rate
from companion.deployment.loadtest.report import LoadReport, LoadStep
from companion.deployment.loadtest.samples import StageRecord
from companion.deployment.loadtest.target import LoadTarget, ready_state, target_of

__all__ = ["LoadProgress", "load_texts", "loadtest"]

_GENERATED = 2_000
_STEP_WARMUP = 0.2
"""Share of a step's length that it runs before it is measured."""


@dataclass(frozen=True)
class LoadProgress:
    """How far a load test is.

    Attributes
    ----------
    rate : float or None
        Requests per second of the present stage; None in a closed loop.
    elapsed, seconds : float
        Of the present stage.
    requests : int
        All so far that came to an end.
    """

    rate: float | None
    elapsed: float
    seconds: float
    requests: int


def load_texts(seed: int = 0, count: int = _GENERATED) -> list[str]:
    """Write the texts that are sent where nobody gives others: log-normal lengths, median 24 words, 4 to 120.

    Parameters
    ----------
    seed : int
    count : int

    Returns
    -------
    list of str
    """
    from companion.inference.throughput.traffic import mixed_texts

    return mixed_texts(count, seed=seed)


def loadtest(
    url: str,
    plan: LoadPlan,
    texts: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    *,
    allow_remote: bool = False,
    progress: Callable[[LoadProgress], object] | None = None,
) -> LoadReport:
    """Put a server under load and measure what it answers.

    The requests are sent by locust in a process of its own, so that nothing of its gevent reaches the caller.
    Ctrl-C ends the test and gives the report of what was measured so far, with `interrupted`.

    Parameters
    ----------
    url : str
        The server, such as ``"http://127.0.0.1:8000"``.
    plan : LoadPlan
    texts : sequence of str, optional
        Sent in turn, again from the first when they are used up. Default: those of `load_texts`.
    pairs : sequence of str, optional
        The second text of each, for a model that reads pairs.
    allow_remote : bool
        Whether the server may be another machine.
    progress : callable, optional
        Called a few times a second.

    Returns
    -------
    LoadReport

    Raises
    ------
    ConnectionError
        When no server answers.
    ValueError
        When the address is not this machine's and that is not allowed, the server says that it is not ready,
        or there are no texts.
    KeyboardInterrupt
        When it was interrupted before anything was measured.
    RuntimeError
        When the process that sends fails.
    """
    target = target_of(url, allow_remote=allow_remote)
    if texts is None:
        texts = load_texts(plan.seed)
    if not texts or (pairs is not None and len(pairs) != len(texts)):
        second = "" if pairs is None else f" and {len(pairs)} second texts"
        raise ValueError(f"found {len(texts)} texts{second}, expected at least one, and as many second texts")
    ready = ready_state(target)
    records, interrupted = _send(plan, _job(target, plan, texts, pairs), progress)
    if not any(measured(record) for record in records):
        if interrupted:
            raise KeyboardInterrupt
        raise ValueError(
            f"no request was due in {plan.seconds:g} measured seconds: give a longer time or a higher rate"
        )
    return _report(target, plan, records, ready, interrupted)


def _job(
    target: LoadTarget, plan: LoadPlan, texts: Sequence[str], pairs: Sequence[str] | None
) -> dict[str, Any]:
    return {
        "origin": target.origin,
        "path": target.prefix + path_of(plan.endpoint, plan.model_name),
        "bodies": bodies(plan.endpoint, texts, pairs, per_request=plan.per_request),
        "headers": plan.headers(),
        "endpoint": plan.endpoint,
        "timeout": plan.timeout,
        "honour": plan.honour_retry_after,
    }


def _send(
    plan: LoadPlan, job: dict[str, Any], progress: Callable[[LoadProgress], object] | None
) -> tuple[list[StageRecord], bool]:
    """Run all stages; also say whether somebody stopped them."""
    records: list[StageRecord] = []
    before = 0
    with Driver(job) as driver:
        try:
            for record, stage in _stages(plan, records):
                records.append(record)
                _take(driver.stage(stage), record, progress, before)
                before += len(record.samples)
        except KeyboardInterrupt:
            if records and not records[-1].done:
                _take(driver.stop(), records[-1], None, 0)
            return [record for record in records if measured(record)], True
    return records, False


def _take(
    messages: Iterable[dict[str, Any]],
    record: StageRecord,
    progress: Callable[[LoadProgress], object] | None,
    before: int,
) -> None:
    for message in messages:
        record.take(message)
        if progress is not None and "at" in message:
            elapsed = min(message["at"], record.seconds)
            progress(LoadProgress(record.rate, elapsed, record.seconds, before + len(record.samples)))


def _stages(plan: LoadPlan, done: list[StageRecord]) -> Iterator[tuple[StageRecord, dict[str, Any]]]:
    """Yield stage after stage; those of a ramp depend on what came of the ones before."""
    if plan.users is not None:
        seconds = plan.warmup + plan.seconds
        yield StageRecord(None, plan.warmup, seconds), {"users": plan.users, "seconds": seconds}
    elif plan.rate is not None:
        yield _open_stage(plan, plan.rate, plan.warmup, 0, grace=plan.timeout)
    elif plan.ramp is not None:
        steps: list[LoadStep] = []
        while (rate := next_rate(plan.ramp, steps)) is not None:
            warmup = _STEP_WARMUP * plan.seconds + (0.0 if steps else plan.warmup)
            yield _open_stage(plan, rate, warmup, len(steps), grace=0.0)
            steps.append(judged(step_of(done[-1])))


def _open_stage(
    plan: LoadPlan, rate: float, warmup: float, number: int, *, grace: float
) -> tuple[StageRecord, dict[str, Any]]:
    seconds = warmup + plan.seconds
    stage = {
        "rate": rate,
        "arrivals": plan.arrivals,
        "seed": plan.seed + number,
        "seconds": seconds,
        "connections": plan.connections_for(rate),
        "grace": grace,
    }
    return StageRecord(rate, warmup, seconds), stage


def _report(
    target: LoadTarget, plan: LoadPlan, records: list[StageRecord], ready: str, interrupted: bool
) -> LoadReport:
    steps, knee, chosen = [step_of(record) for record in records], None, 0
    if plan.ramp is not None:
        steps = [judged(step) for step in steps]
        knee = knee_of(plan.ramp, steps)
        chosen = next((place for place, step in enumerate(steps) if step.rate == knee.low), 0)
    return LoadReport(
        url=target.url,
        plan=plan,
        total=steps[chosen],
        steps=tuple(steps) if plan.ramp is not None else (),
        knee=knee,
        troubles=troubles_of(records),
        patience=patience_of(records, honoured=plan.honour_retry_after),
        seconds=seconds_of(records),
        warmup_requests=sum(
            sample.attempt == 0 and sample.due < record.warmup
            for record in records
            for sample in record.samples
        ),
        ready=ready,
        interrupted=interrupted,
        latencies=latencies_of(records[chosen]),
    )
