"""What a benchmark is to measure, checked before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from companion.inference.benchmarking.arrivals import check_rate
from companion.inference.intervals import LEVEL, check_level, runs_needed

__all__ = ["BenchmarkPlan"]

_ROUNDS = 3  # the fewest with a median and a spread


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to measure.

    Attributes
    ----------
    runs : int
        Single requests of each candidate, for each group of lengths.
    batch_sizes : tuple of int
    rounds : int
        Of the throughput: in each, every candidate works through the same texts once per batch size.
    batched_texts : int or None
        How many texts that are. Default: twice the largest batch, at least 64.
    rate : float or None
        Also send requests at this constant rate per second.
    groups : int
        Groups of lengths.
    percents : tuple of float
        Which percentiles.
    level : float
        Confidence level of the intervals.
    seed : int
        Of the order of the texts.

    Raises
    ------
    ValueError
        When a number is too small to measure anything.
    """

    runs: int = 400
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    rounds: int = 7
    batched_texts: int | None = None
    rate: float | None = None
    groups: int = 3
    percents: tuple[float, ...] = (50, 95, 99)
    level: float = LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that measure nothing."""
        check_level(self.level)
        if not self.percents:
            raise ValueError("percents is empty, expected at least one, such as 50")
        least = min(runs_needed(percent, level=self.level) for percent in self.percents)
        if self.runs < least:
            raise ValueError(
                f"runs is {self.runs}, expected at least {least}: fewer cannot tell any of the percentiles"
            )
        if self.rounds < _ROUNDS:
            raise ValueError(
                f"rounds is {self.rounds}, expected at least {_ROUNDS} for a median and a spread"
            )
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {list(self.batch_sizes)}, expected numbers of at least 1")
        if self.batched_texts is not None and self.batched_texts < 1:
            raise ValueError(f"batched_texts is {self.batched_texts}, expected at least 1")
        if self.groups < 1:
            raise ValueError(f"groups is {self.groups}, expected at least 1")
        if self.rate is not None:
            check_rate(self.rate)
