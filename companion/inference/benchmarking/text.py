"""The tables of a benchmark for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from companion.inference.intervals import Estimate, Percentile
from companion.inference.tables import table

if TYPE_CHECKING:
    from companion.inference.benchmarking.arrivals import Arrivals
    from companion.inference.benchmarking.report import Benchmark, Faster, MeasuredFolder

__all__ = ["number", "table", "tables", "times"]

_WORDS = {"candidate", "words", "warm-up", "counted from", "verdict"}  # columns


def tables(found: Benchmark) -> str:
    """Write a benchmark as text: each table names its unit, each refusal its reason.

    Parameters
    ----------
    found : Benchmark

    Returns
    -------
    str
    """
    names = _short([candidate.name for candidate in found.candidates])
    threads = "" if found.threads is None else f"{_count(found.threads, 'thread')} each on "
    parts = [
        f"{_count(len(names), 'candidate')}, {_count(found.texts, 'text')}, {threads}"
        f"{_count(found.cores, 'core')}; all in turns, in one run. Intervals of {found.level:.0%}.",
        table(
            "",
            [_candidate(name, item) for name, item in zip(names, found.candidates, strict=True)],
            left=_WORDS,
        ),
        _latency(found, names),
        _throughput(found, names),
    ]
    for name, item in zip(names, found.candidates, strict=True):
        if item.arrivals is not None:
            parts.append(_arrivals(name, item.arrivals))
    if reasons := list(found.refusals()):
        parts.append("\n".join(f"Not given (-): {reason}." for reason in reasons))
    if len(names) > 1:
        parts.append(f"Times faster: than {names[0]}, median of the rounds, its interval, [middle 80 %].")
    return "\n\n".join(parts)


def _candidate(name: str, item: MeasuredFolder) -> dict[str, str]:
    warm = item.warmup
    state = "stable" if warm.stable else f"NOT stable ({warm.variation:.0%} apart)"
    return {
        "candidate": name,
        "MB": "-" if item.bytes is None else f"{item.bytes / 1e6:.1f}",
        "warm-up": f"{state} after {_count(warm.blocks, 'block')}, {warm.seconds:.1f} s",
        "labels changed": item.not_compared or str(item.flips),
    }


def _latency(found: Benchmark, names: Sequence[str]) -> str:
    rows = []
    for position in range(len(found.candidates[0].latency)):
        for name, item in zip(names, found.candidates, strict=True):
            row = item.latency[position]
            rows.append(
                {"words": "{} to {}".format(*row.words), "candidate": name, "runs": str(row.runs)}
                | {part.name: _milliseconds(part) for part in row.percentiles}
                | {"times faster": times(row.faster)}
            )
    return table("Latency of one text, milliseconds", rows, left=_WORDS)


def _throughput(found: Benchmark, names: Sequence[str]) -> str:
    rows = []
    for position in range(len(found.candidates[0].throughput)):
        for name, item in zip(names, found.candidates, strict=True):
            row = item.throughput[position]
            rows.append(
                {
                    "batch": str(row.batch_size),
                    "candidate": name,
                    "rounds": str(row.rounds),
                    "median": f"{row.texts_per_second:.1f}",
                    "slowest to fastest": f"{row.spread[0]:.1f} to {row.spread[1]:.1f}",
                    "times faster": times(row.faster),
                }
            )
    return table("Throughput, texts per second", rows, left=_WORDS)


def _arrivals(name: str, found: Arrivals) -> str:
    rows = [
        {"counted from": label} | {part.name: _milliseconds(part) for part in percentiles}
        for label, percentiles in (
            ("closed loop: when the one before was answered", found.closed_percentiles),
            ("constant rate: when it was sent", found.service_percentiles),
            ("constant rate: when it was due", found.open_percentiles),
        )
    ]
    title = f"{name} at {found.open.rate:g} requests per second, busy {found.open.busy:.0%}, milliseconds"
    lines = [
        table(title, rows, left=_WORDS),
        "Intervals of the last row are too narrow: in a queue each wait depends on the one before. "
        f"The sender itself woke up {number(1e3 * found.open.overslept)} ms late (median).",
    ]
    if found.p99_ratio is not None:
        lines.append(
            f"p99 of requests that come when they come: {found.p99_ratio:.1f} times the closed loop's."
        )
    if found.overloaded:
        lines.append("More is due than can be answered: the queue grows for as long as this is measured.")
    return "\n".join(lines)


def _milliseconds(part: Percentile) -> str:
    return "-" if part.estimate is None else _scaled(part.estimate)


def _scaled(found: Estimate) -> str:
    return "{} ({} to {})".format(*(number(1e3 * part) for part in (found.value, found.low, found.high)))


def number(value: float) -> str:
    """Write a number from 0 on with at least three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def times(found: Faster | None) -> str:
    """Write how many times faster one is, with its interval and the middle rounds; nothing for None."""
    if found is None:
        return ""
    interval = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.median:.2f}{interval} [{found.spread[0]:.2f} to {found.spread[1]:.2f}]"


def _short(names: Sequence[str]) -> list[str]:
    """Shorten folders to their last part where that tells them apart."""
    last = [PurePath(name).name or name for name in names]
    return last if len(set(last)) == len(last) else list(names)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
