"""A load test as tables for a terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from companion.deployment.loadtest.report import LoadReport, LoadStep
    from companion.deployment.loadtest.wrk import WrkReport
    from companion.inference.intervals import Percentile

__all__ = ["notes", "percentile_in_words", "side_by_side", "summary", "written"]

_WIDTH = 100


def written(report: LoadReport) -> str:
    """Write the whole report.

    Parameters
    ----------
    report : LoadReport

    Returns
    -------
    str
    """
    tables = [_latency(report)]
    if report.steps:
        tables.insert(0, _steps(report))
    if report.troubles:
        tables.append(_troubles(report))
    return "\n".join([summary(report), "", *map(_drawn, tables), *notes(report)])


def summary(report: LoadReport) -> str:
    """Say in one sentence what was done and what came of it."""
    plan, counts = report.plan, report.counts
    what = {
        "users": f"{plan.users} users in a closed loop",
        "rate": f"{plan.rate:g} requests/s in an open loop ({plan.arrivals} arrivals)" if plan.rate else "",
        "ramp": f"a ramp of {len(report.steps)} steps",
    }[plan.mode]
    per = f", {plan.per_request} texts each" if plan.per_request > 1 else ""
    begin = "INTERRUPTED. " if report.interrupted else ""
    throughput = f"{report.throughput:,.1f} answers/s"
    if report.knee is not None:
        throughput = f"at most {report.knee.throughput:,.1f} answers/s"
    seconds = sum(step.seconds for step in report.steps) or report.total.seconds
    return (
        f"{begin}{report.url}, {plan.endpoint}{per}: {what}, {seconds:.1f} s measured.\n"
        f"{throughput}; of {counts.due:,} requests due {counts.ok:,} were answered, {counts.failed:,} "
        f"failed; refusals: {counts.refused:,}."
    )


def notes(report: LoadReport) -> Iterator[str]:
    """Yield what a reader must know in order not to read the numbers wrongly."""
    if report.knee is not None:
        yield f"Knee: {_knee(report)}"
    yield from _omission(report)
    if report.total.counts.unsent:
        yield (
            f"{report.total.counts.unsent} requests were never sent: all connections were taken. The time "
            "that they had waited counts, the percentiles are lower bounds."
        )
    if report.counts.refused:
        patience = report.patience
        said = f"{patience.named} of {report.counts.refused} refusals had a Retry-After"
        if patience.shortest is not None:
            said += f" ({patience.shortest:g} to {patience.longest:g} s)"
        yield f"{said}; the clients {'waited for it' if patience.honoured else 'did not heed it'}."
    generator = report.total.generator
    yield (
        f"The generator used {generator.cpu:.0%} of one core ({generator.busiest:.0%} in its busiest second) "
        f"and woke up {1e3 * generator.lag_p50:.1f} ms late in the median, {1e3 * generator.lag_p99:.1f} ms "
        "in the worst hundredth."
    )
    if generator.starved:
        yield (
            "The generator did not get its core when it wanted it: others, perhaps the server had it: "
            "all latencies hold that time."
        )
    if generator.limit is not None:
        yield (
            f"THE GENERATOR WAS THE LIMIT: {generator.limit}. What was measured may be its ceiling, not the "
            "server's: wrk (--witness), or a second machine, can send more."
        )
    if report.ready == "unknown":
        yield "The server has no /health/ready: nobody knows whether it was ready."
    yield from dict.fromkeys(
        f"Not given (-): {found.reason}." for found in report.total.latency if found.reason
    )


def _omission(report: LoadReport) -> Iterator[str]:
    if report.plan.mode == "users":
        yield (
            "In a closed loop a stall of the server is one slow request for each user, however many would "
            "have come: --rate counts them."
        )
        return
    late, apart = report.total.counts.late, report.omission
    said = f"{late} of {report.total.counts.due} requests had to wait for a connection."
    if apart:
        listed = ", ".join(f"{name} by {1e3 * value:.1f} ms" for name, value in apart.items())
        said += f" Counted from the real sending, the percentiles would be too low: {listed}."
    yield said


def _knee(report: LoadReport) -> str:
    knee = report.knee
    assert knee is not None
    trust = "" if knee.trusted else " This is no limit of the server."
    if knee.high is None:
        return f"not reached; {_rate(knee.low)} requests/s were followed. {knee.reason}.{trust}"
    if knee.low is None:
        return f"below {_rate(knee.high)} requests/s, the first rate: {knee.reason}.{trust}"
    return f"between {_rate(knee.low)} and {_rate(knee.high)} requests/s: there {knee.reason}.{trust}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _table(title: str, *columns: str, words: int = 0) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < words else "right", no_wrap=place >= words)
    return table


def _latency(report: LoadReport) -> Table:
    of = f" at {_rate(report.total.rate)} requests/s" if report.steps else ""
    closed = report.plan.mode == "users"
    columns = ["", "from sending" if closed else "from due time", *([] if closed else ["from real sending"])]
    table = _table(f"Latency{of}, milliseconds (95% intervals)", *columns, words=1)
    for due, sent in zip(report.total.latency, report.total.service, strict=True):
        found = (due,) if closed else (due, sent)
        table.add_row(due.name, *map(percentile_in_words, found))
    return table


def percentile_in_words(found: Percentile) -> str:
    """Write a percentile in milliseconds with its interval; a dash where it is refused."""
    if found.estimate is None:
        return "-"
    value, low, high = (1e3 * part for part in found.estimate.to_dict().values())
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _steps(report: LoadReport) -> Table:
    table = _table(
        "Steps",
        "rate/s",
        "due/s",
        "answers/s",
        "refused",
        "failed",
        "p50 ms",
        "p99 ms",
        "generator",
        "followed",
    )
    for step in sorted(report.steps, key=lambda step: step.rate or 0):
        table.add_row(
            _rate(step.rate),
            f"{step.offered:,.1f}",
            f"{step.throughput:,.1f}",
            str(step.counts.refused),
            str(step.counts.failed),
            _short(step, 50),
            _short(step, 99),
            f"{step.generator.cpu:.0%}",
            "yes" if step.broke is None else "no",
        )
    return table


def _short(step: LoadStep, percent: float) -> str:
    [found] = [found for found in step.latency if found.percent == percent]
    return "-" if found.estimate is None else f"{1e3 * found.estimate.value:.1f}"


def _troubles(report: LoadReport) -> Table:
    table = _table("No answer", "what", "status", "why", "times", words=3)
    for trouble in report.troubles:
        status = str(trouble.status) if trouble.status else "-"
        table.add_row(trouble.outcome, status, _plain(trouble.title), str(trouble.count))
    return table


def _plain(text: str) -> str:
    """Keep what a server says from being read as rich's markup."""
    from rich.markup import escape

    return escape(text)


def side_by_side(report: LoadReport, other: WrkReport) -> str:
    """Put the load test beside what wrk measured.

    Parameters
    ----------
    report : LoadReport
    other : WrkReport

    Returns
    -------
    str
    """
    table = _table("Witness", "", "locust", "wrk", "wrk / locust", words=1)
    rows = [("answers/s", report.throughput, other.throughput)]
    for percent, seconds in other.percentiles.items():
        found = report.percentile(percent)
        if found.estimate is not None:
            rows.append((f"{found.name} ms", 1e3 * found.estimate.value, 1e3 * seconds))
    for name, ours, theirs in rows:
        table.add_row(name, f"{ours:,.1f}", f"{theirs:,.1f}", f"{theirs / ours:.2f}" if ours else "-")
    failed = f"\nwrk: {other.errors} of {other.requests:,} requests were no answers." if other.errors else ""
    return _drawn(table) + failed


def _drawn(table: Table) -> str:
    from rich.console import Console

    width = max(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()).rstrip() + "\n"
