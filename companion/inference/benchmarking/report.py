"""What a benchmark found: percentiles with intervals, ratios with a spread, refusals with a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from companion.inference.benchmarking.arrivals import Arrivals
from companion.inference.benchmarking.warmup import Warmup
from companion.inference.intervals import LEVEL, Percentile, percentile
from companion.inference.timing import Timing

__all__ = ["Benchmark", "Faster", "LatencyRow", "MeasuredFolder", "ThroughputRow", "faster_than"]


@dataclass(frozen=True)
class Faster:
    """How many times faster a candidate is than the first one, round by round.

    Attributes
    ----------
    median : float
        Above 1 it is faster.
    low, high : float or None
        Confidence interval of the median; None where there are too few rounds for one.
    spread : tuple of float
        The middle four fifths of the rounds lie in between.
    """

    median: float
    low: float | None
    high: float | None
    spread: tuple[float, float]


def faster_than(first: Timing, other: Timing, *, level: float = LEVEL) -> Faster:
    """Compare two candidates that took turns.

    Parameters
    ----------
    first, other : Timing
        Entry `i` of each belongs to round `i`.
    level : float
        Of the interval of the median.

    Returns
    -------
    Faster
    """
    ratios = sorted(a / b for a, b in zip(first.seconds, other.seconds, strict=True))
    estimate = percentile(ratios, 50, level=level).estimate
    spread = ratios[math.ceil(len(ratios) * 0.1) - 1], ratios[math.ceil(len(ratios) * 0.9) - 1]
    if estimate is None:
        return Faster(Timing(tuple(ratios)).median, None, None, spread)
    return Faster(estimate.value, estimate.low, estimate.high, spread)


@dataclass(frozen=True)
class LatencyRow:
    """Single requests of similar length.

    Attributes
    ----------
    words : tuple of int
        The fewest and the most words of a text.
    runs : int
    percentiles : tuple of Percentile
        Seconds.
    faster : Faster or None
        Than the first candidate; None for the first.
    timing : Timing
        The single requests; request `i` of each candidate belongs to the same turn.
    """

    words: tuple[int, int]
    runs: int
    percentiles: tuple[Percentile, ...]
    faster: Faster | None
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, without the single requests; times in seconds."""
        percentiles = [found.to_dict() for found in self.percentiles]
        return _without_timing(asdict(self)) | {"percentiles": percentiles}


@dataclass(frozen=True)
class ThroughputRow:
    """Many texts in batches of one size.

    Attributes
    ----------
    batch_size : int
    rounds : int
    texts_per_second : float
        Median of the rounds.
    spread : tuple of float
        Slowest and fastest round.
    faster : Faster or None
        Than the first candidate; None for the first.
    timing : Timing
        The rounds; round `i` of each candidate belongs to the same turn.
    """

    batch_size: int
    rounds: int
    texts_per_second: float
    spread: tuple[float, float]
    faster: Faster | None
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, without the single rounds."""
        return _without_timing(asdict(self))


def _without_timing(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "timing"}


@dataclass(frozen=True)
class MeasuredFolder:
    """One candidate.

    Attributes
    ----------
    name : str
        Its folder.
    bytes : int or None
        Size of the folder; None where there is none.
    labels : tuple of str
    warmup : Warmup
    latency : tuple of LatencyRow
        By length, shortest first; the last row is all lengths together, if there are several.
    throughput : tuple of ThroughputRow
    flips : int or None
        Of the texts, how many get another label than from the first candidate.
    not_compared : str or None
        Why there is no such number.
    arrivals : Arrivals or None
        Where a rate was given.
    """

    name: str
    bytes: int | None
    labels: tuple[str, ...]
    warmup: Warmup
    latency: tuple[LatencyRow, ...]
    throughput: tuple[ThroughputRow, ...]
    flips: int | None
    not_compared: str | None
    arrivals: Arrivals | None

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "labels": list(self.labels),
            "warmup": self.warmup.to_dict(),
            "latency": [row.to_dict() for row in self.latency],
            "throughput": [row.to_dict() for row in self.throughput],
            "flips": self.flips,
            "not_compared": self.not_compared,
            "arrivals": None if self.arrivals is None else self.arrivals.to_dict(),
        }


@dataclass(frozen=True)
class Benchmark:
    """Several candidates, measured in turns in one run.

    Attributes
    ----------
    candidates : tuple of MeasuredFolder
        The first is what the others are compared with.
    texts : int
        Different texts.
    threads : int or None
        That each candidate computes with; None where the caller opened the predictors.
    cores : int
        That the process may use.
    level : float
        Confidence level of all intervals.
    """

    candidates: tuple[MeasuredFolder, ...]
    texts: int
    threads: int | None
    cores: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {
            "texts": self.texts,
            "threads": self.threads,
            "cores": self.cores,
            "level": self.level,
            "candidates": [found.to_dict() for found in self.candidates],
        }

    def text(self) -> str:
        """Write tables for a terminal."""
        from companion.inference.benchmarking.text import tables

        return tables(self)

    def refusals(self) -> Iterator[str]:
        """Yield the reasons for percentiles that are not given, each once."""
        rows = [row for found in self.candidates for row in found.latency]
        percentiles = [item for row in rows for item in row.percentiles]
        for found in self.candidates:
            if found.arrivals is not None:
                percentiles += found.arrivals.open_percentiles
        yield from dict.fromkeys(item.reason for item in percentiles if item.reason is not None)
