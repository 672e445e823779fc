"""A load test as plots: latency over time, its distribution, and what a ramp gave."""

from __future__ import annotations

from companion.deployment.loadtest.report import LoadReport, LoadSecond
from companion.plots import PALETTE, Plot, figure, show, style

__all__ = ["distribution_plot", "ramp_plot", "time_plot"]


def time_plot(report: LoadReport) -> Plot:
    """Draw latency and throughput second by second.

    Parameters
    ----------
    report : LoadReport

    Returns
    -------
    Plot
        Above the median and the slowest request of each second, and p99 where a second has a hundred; below
        the requests due, the answers and the refusals. The warm-up is shaded.
    """
    seconds = report.seconds
    at = [second.second + second.length / 2 for second in seconds]
    with style():
        drawn, (upper, lower) = figure(height=4.6, rows=2)
        for name, marker in (("p50", "o"), ("p99", "s"), ("slowest", "^")):
            points = [
                (place, 1e3 * value)
                for place, second in zip(at, seconds, strict=True)
                if (value := getattr(second, name)) is not None
            ]
            if points:
                upper.plot(*zip(*points, strict=True), marker=marker, markersize=3.5, label=name)
        upper.set(xlabel="time, seconds", ylabel="latency, ms", yscale="log")
        if upper.has_data():
            upper.legend(loc="best")
        for name, label in (("due", "due"), ("ok", "answers"), ("refused", "refusals")):
            values = [getattr(second, name) / second.length for second in seconds]
            if name != "refused" or any(values):
                lower.plot(at, values, marker="o", markersize=3.5, label=label)
        lower.set(xlabel="time, seconds", ylabel="requests per second", ylim=(0, None))
        lower.legend(loc="best")
        for axes in (upper, lower):
            for second in seconds:
                if second.warmup:
                    axes.axvspan(
                        second.second,
                        second.second + second.length,
                        color=PALETTE.neutral,
                        alpha=0.15,
                        linewidth=0,
                    )
        return show(drawn, alt=_time_in_words(report))


def _time_in_words(report: LoadReport) -> str:
    seconds = report.seconds
    measured = [second for second in seconds if not second.warmup] or list(seconds)
    slowest = max((second for second in measured if second.slowest is not None), key=_slowest, default=None)
    rates = [second.ok / second.length for second in measured]
    said = (
        f"Over {len(measured)} measured seconds, between {min(rates):.0f} and {max(rates):.0f} requests per "
        f"second were answered, and {report.counts.refused} refused."
    )
    if slowest is None:
        return f"{said} No request was answered."
    middle = [1e3 * second.p50 for second in measured if second.p50 is not None]
    return (
        f"{said} The median latency of a second lies between {min(middle):.1f} and {max(middle):.1f} ms; the "
        f"slowest request, of second {slowest.second}, took {1e3 * _slowest(slowest):.1f} ms."
    )


def _slowest(second: LoadSecond) -> float:
    return second.slowest or 0.0


def distribution_plot(report: LoadReport) -> Plot:
    """Draw which share of the requests took longer than what.

    Parameters
    ----------
    report : LoadReport
        With at least one answer.

    Returns
    -------
    Plot
        Both axes logarithmic, so that the slow end, which users notice, is as large as the rest; the
        percentiles that are not refused are marked with their intervals.

    Raises
    ------
    ValueError
        When no request was answered.
    """
    ordered = sorted(report.latencies)
    count = len(ordered)
    if not count:
        raise ValueError("no request was answered, expected at least one: there is nothing to draw")
    with style():
        drawn, axes = figure()
        shares = [100 * (count - place) / count for place in range(count)]
        axes.step([1e3 * value for value in ordered], shares, where="post")
        marked = [found for found in report.total.latency if found.estimate is not None]
        for found in marked:
            assert found.estimate is not None
            value, low, high = (1e3 * part for part in found.estimate.to_dict().values())
            above = 100 - found.percent
            axes.errorbar(
                [value], [above], xerr=[[value - low], [high - value]], fmt="o", markersize=4, capsize=3,
                color=PALETTE.series[1],
            )  # fmt: skip
            axes.annotate(found.name, (value, above), xytext=(5, 5), textcoords="offset points")
        axes.set(xlabel="latency, ms", ylabel="slower requests, %", xscale="log", yscale="log")
        listed = ", ".join(
            f"{found.name} {1e3 * found.estimate.value:.1f} ms" for found in marked if found.estimate
        )
        return show(
            drawn,
            alt=f"Distribution of {count} latencies, from {1e3 * ordered[0]:.1f} to {1e3 * ordered[-1]:.1f} "
            f"ms{': ' + listed if listed else ''}.",
        )


def ramp_plot(report: LoadReport) -> Plot:
    """Draw how many requests were answered against how many were due.

    Parameters
    ----------
    report : LoadReport
        Of a ramp.

    Returns
    -------
    Plot
        On the dashed line everything is answered; the band is the interval of the knee.

    Raises
    ------
    ValueError
        When it was no ramp.
    """
    knee = report.knee
    if knee is None:
        raise ValueError("this load test was no ramp, expected one: only its steps have different rates")
    steps = sorted(report.steps, key=lambda step: step.offered)
    with style():
        drawn, axes = figure()
        edge = max(step.offered for step in steps)
        axes.plot([0, edge], [0, edge], linestyle="--", color=PALETTE.neutral)
        axes.plot(
            [step.offered for step in steps], [step.throughput for step in steps], color=PALETTE.series[0]
        )
        for kept, colour, label in ((True, 0, "followed"), (False, 1, "not followed")):
            chosen = [step for step in steps if (step.broke is None) == kept]
            if chosen:
                axes.plot(
                    [step.offered for step in chosen],
                    [step.throughput for step in chosen],
                    linestyle="none",
                    marker="o" if kept else "X",
                    color=PALETTE.series[colour],
                    label=label,
                )
        if knee.low is not None and knee.high is not None:
            axes.axvspan(knee.low, knee.high, color=PALETTE.series[2], alpha=0.18, linewidth=0, label="knee")
        axes.set(xlabel="due, requests per second", ylabel="answered, requests per second", ylim=(0, None))
        axes.legend(loc="best")
        where = (
            f"the knee lies between {knee.low:.1f} and {knee.high:.1f} requests per second"
            if knee.low is not None and knee.high is not None
            else f"no knee was found: {knee.reason}"
        )
        return show(
            drawn,
            alt=f"Answers against requests due, in {len(steps)} steps up to {edge:.1f} per second. At most "
            f"{knee.throughput:.1f} were answered; {where}.",
        )
