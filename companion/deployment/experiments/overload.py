"""More than a server can do: what admission control refuses, and what becomes of those who are let in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from companion.deployment.experiments.planted import BOUNDED, NO_ADMISSION
from companion.deployment.experiments.processes import serving
from companion.deployment.loadtest import LoadPlan, LoadReport, loadtest

__all__ = ["capacity", "overloaded", "two_loops"]

_FOR_P99 = 420
"""Requests; `companion.inference.percentile` refuses a p99 of fewer than 368."""
_ATTEMPTS = 3
_NO_OVERLOAD = 2.0
"""Answers per second, in capacities: beyond, the capacity was wrong and there was no overload."""


def capacity(url: str, texts: Sequence[str], *, users: int = 8, seconds: float = 2.0) -> float:
    """Measure how many requests a second a server answers when clients wait for each other.

    Twice, and the better run counts: a machine that stands still must not pass for a slow server.
    """
    plan = LoadPlan(users=users, seconds=seconds, warmup=0.5)
    return max(loadtest(url, plan, texts).throughput for _ in range(2))


def overloaded(
    folder: Path,
    texts: Sequence[str],
    *,
    times: float = 3.0,
    seconds: float = 6.0,
    deadline_s: float = 1.0,
) -> dict[str, Any]:
    """Ask two servers for several times their capacity: one as it is, one that lets everybody in.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
    times : float
        Rate of the requests, in capacities.
    seconds : float
        Length of the overload.
    deadline_s : float
        Time of each request. The server that lets everybody in is not told.

    Returns
    -------
    dict
        ``"capacity"`` and ``"rate"`` in requests per second, ``"deadline"``, and under ``"bounded"`` and
        ``"unbounded"`` what `_told` says.
    """
    found: dict[str, Any] = {"deadline": deadline_s}
    with serving(folder, "--timeout", deadline_s, plant=BOUNDED) as server:
        found["capacity"] = capacity(server.url, texts)
        for _ in range(_ATTEMPTS):
            report = _flooded(server.url, texts, times * found["capacity"], seconds)
            if report.throughput <= _NO_OVERLOAD * found["capacity"]:
                break
            found["capacity"] = report.throughput  # it can do more than it was believed to
        found["bounded"] = _told(report, deadline_s, psutil.Process(server.pid).memory_info().rss)
    found["rate"] = times * found["capacity"]
    with serving(folder, plant=NO_ADMISSION) as server:
        report = _flooded(server.url, texts, found["rate"], seconds)
        found["unbounded"] = _told(report, deadline_s, psutil.Process(server.pid).memory_info().rss)
    return found


def _flooded(url: str, texts: Sequence[str], rate: float, seconds: float) -> LoadReport:
    # As many connections as requests can wait: otherwise the clients' own queue would be measured.
    plan = LoadPlan(rate=rate, seconds=seconds, warmup=0.0, connections=900, timeout=4 * seconds)
    return loadtest(url, plan, texts)


def _told(report: LoadReport, deadline_s: float, memory: int) -> dict[str, Any]:
    """Keep of a report what the page draws."""
    in_time = sum(seconds <= deadline_s for seconds in report.latencies)
    return {
        "seconds": [
            {
                "second": one.second,
                "ok": one.ok,
                "refused": one.refused,
                "failed": one.failed,
                "p50": one.p50,
                "slowest": one.slowest,
            }
            for one in report.seconds
        ],
        "ok": report.counts.ok,
        "in_time": in_time,
        "refused": report.counts.refused,
        "failed": report.counts.failed,
        "due": report.counts.due,
        "throughput": report.throughput,
        "latencies": [round(seconds, 4) for seconds in report.latencies],
        "retry_after": [report.patience.named, report.patience.shortest, report.patience.longest],
        "statuses": {str(status): count for status, count in report.statuses.items()},
        "starved": report.total.generator.starved,
        "memory": memory,
    }


def two_loops(
    folder: Path, texts: Sequence[str], *, load: float = 0.6, seconds: float = 5.0
) -> dict[str, Any]:
    """Measure one server in a closed loop of one client and by a timetable.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
    load : float
        Rate of the timetable, in capacities.
    seconds : float
        Of each; up to four times as long by the timetable, until a p99 can be known.

    Returns
    -------
    dict
        ``"closed"`` and ``"open"``: the latencies in seconds, the earliest request first; ``"rate"``.
    """
    with serving(folder, "--threads", 1) as server:
        most = capacity(server.url, texts)
        closed = loadtest(server.url, LoadPlan(users=1, seconds=seconds, warmup=0.5), texts)
        enough = min(4 * seconds, max(seconds, _FOR_P99 / (load * most)))
        by_timetable = LoadPlan(rate=load * most, seconds=enough, warmup=0.5)
        opened = loadtest(server.url, by_timetable, texts)
    return {
        "capacity": most,
        "rate": load * most,
        "closed": [round(seconds, 5) for seconds in closed.latencies],
        "open": [round(seconds, 5) for seconds in opened.latencies],
    }
