"""Requests that come when they come: the open loop, and what a closed loop leaves out.

A closed loop sends a request when the one before is answered. While the server stalls, it sends nothing, so
a stall is one slow request, however many users would have waited. Gil Tene calls this coordinated omission
[1]_. An open loop has a timetable: request `i` is due after `i / rate` seconds whatever happened before, and
its latency counts from then.

.. [1] Tene, "How NOT to Measure Latency", Strange Loop 2015.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from companion.inference.benchmarking.sending import sender
from companion.inference.intervals import LEVEL, Percentile, percentile
from companion.inference.predictor import Predictor

__all__ = ["Arrivals", "Load", "closed_loop", "drive", "open_loop"]

_PERCENTS = (50.0, 95.0, 99.0)


@dataclass(frozen=True)
class Load:
    """Requests that one server answered, one at a time, first come first served.

    Attributes
    ----------
    rate : float or None
        Requests due per second. None for a closed loop.
    latencies : tuple of float
        Seconds from when a request was due to its answer.
    services : tuple of float
        Seconds from when the request was really sent to its answer; in a closed loop the same.
    seconds : float
        From the first request's due time to the last answer.
    overslept : float
        Median of the seconds by which the sender itself woke up too late for a request that it could have
        sent on time. They are part of the latency, as the waking of a server is.
    """

    rate: float | None
    latencies: tuple[float, ...]
    services: tuple[float, ...]
    seconds: float
    overslept: float = 0.0

    @property
    def achieved_rate(self) -> float | None:
        """Answers per second; None where the clock did not move."""
        return len(self.latencies) / self.seconds if self.seconds > 0 else None

    @property
    def busy(self) -> float:
        """Share of the time in which the server worked."""
        return min(1.0, sum(self.services) / self.seconds) if self.seconds > 0 else 1.0


def closed_loop(
    send: Callable[[int], object], *, requests: int, clock: Callable[[], float] = time.perf_counter
) -> Load:
    """Send each request when the one before is answered.

    Parameters
    ----------
    send : callable
        Sends request `i`, from 0, and returns with its answer.
    requests : int
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    Load

    Raises
    ------
    ValueError
        For less than one request.
    """
    _check_requests(requests)
    start, services = clock(), []
    for index in range(requests):
        sent = clock()
        send(index)
        services.append(clock() - sent)
    return Load(None, tuple(services), tuple(services), clock() - start)


def open_loop(
    send: Callable[[int], object],
    *,
    rate: float,
    requests: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Load:
    """Send requests by a timetable. One that is due while another runs waits for its turn, and that counts.

    Parameters
    ----------
    send : callable
        Sends request `i`, from 0, and returns with its answer.
    rate : float
        Requests due per second.
    requests : int
    clock : callable
        Gives the time in seconds.
    sleep : callable
        Waits for so many seconds.

    Returns
    -------
    Load

    Raises
    ------
    ValueError
        For less than one request, or a rate that is not above 0.
    """
    _check_requests(requests)
    check_rate(rate)
    latencies: list[float] = []
    services: list[float] = []
    overslept: list[float] = []
    start = clock()
    for index in range(requests):
        due = start + index / rate
        in_time = clock() <= due
        while (wait := due - clock()) > 0:
            sleep(wait)
        sent = clock()
        send(index)
        answered = clock()
        if in_time:
            overslept.append(sent - due)
        latencies.append(answered - due)
        services.append(answered - sent)
    late = statistics.median(overslept) if overslept else 0.0
    return Load(rate, tuple(latencies), tuple(services), clock() - start, late)


@dataclass(frozen=True)
class Arrivals:
    """The same predictor under both loops.

    Attributes
    ----------
    closed, open : Load
    closed_percentiles : tuple of Percentile
        Seconds.
    service_percentiles : tuple of Percentile
        Of the open loop, counted from when a request was really sent: what a tool reports that omits.
    open_percentiles : tuple of Percentile
        Of the open loop, counted from when it was due. In a queue each wait depends on the one before, so
        these intervals are too narrow.
    """

    closed: Load
    open: Load
    closed_percentiles: tuple[Percentile, ...]
    service_percentiles: tuple[Percentile, ...]
    open_percentiles: tuple[Percentile, ...]

    @property
    def overloaded(self) -> bool:
        """Whether more was due than could be answered; then latency grows for as long as it is measured."""
        assert self.open.rate is not None
        return sum(self.open.services) * self.open.rate >= len(self.open.services)

    @property
    def p99_ratio(self) -> float | None:
        """How many times higher the open loop's p99 is, or None where there are too few requests."""
        (low,), (high,) = (
            [found.estimate for found in percentiles if found.percent == 99]
            for percentiles in (self.closed_percentiles, self.open_percentiles)
        )
        if low is None or high is None or low.value == 0:
            return None
        return high.value / low.value

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: all but the single latencies."""
        return {
            "rate": self.open.rate,
            "requests": len(self.open.latencies),
            "achieved_rate": self.open.achieved_rate,
            "busy": self.open.busy,
            "overslept": self.open.overslept,
            "overloaded": self.overloaded,
            "p99_ratio": self.p99_ratio,
            "closed_loop": [found.to_dict() for found in self.closed_percentiles],
            "open_loop_from_sent": [found.to_dict() for found in self.service_percentiles],
            "open_loop_from_due": [found.to_dict() for found in self.open_percentiles],
        }


def drive(
    predictor: Predictor,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    rate: float,
    requests: int = 400,
    level: float = LEVEL,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Arrivals:
    """Drive a predictor in a closed loop, then at a constant rate of arrival, with the same requests.

    Parameters
    ----------
    predictor : Predictor
        Warm.
    texts : sequence of str
        Sent one by one, again from the first when they are used up.
    pairs : sequence of str, optional
        The second text of each.
    rate : float
        Requests due per second.
    requests : int
        In each loop.
    level : float
        Of the intervals.
    clock, sleep : callable
        As for `open_loop`.

    Returns
    -------
    Arrivals

    Raises
    ------
    ValueError
        When there are no texts, as many pairs as texts are missing, or a number is out of range.
    """
    check_rate(rate)
    send = sender(predictor, texts, pairs)
    closed = closed_loop(send, requests=requests, clock=clock)
    due = open_loop(send, rate=rate, requests=requests, clock=clock, sleep=sleep)
    counted = (closed.latencies, due.services, due.latencies)
    found = [tuple(percentile(values, p, level=level) for p in _PERCENTS) for values in counted]
    return Arrivals(closed, due, *found)


def check_rate(rate: float) -> None:
    """Refuse a rate at which nothing would ever be due.

    Parameters
    ----------
    rate : float
        Per second.

    Raises
    ------
    ValueError
        When it is not a finite number above 0.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate is {rate}, expected requests per second above 0, such as 50")


def _check_requests(requests: int) -> None:
    if requests < 1:
        raise ValueError(f"requests is {requests}, expected at least 1")
