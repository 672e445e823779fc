"""Times several ways of doing the same thing, side by side, so that their ratios can be trusted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Timing", "ratio", "side_by_side"]


@dataclass(frozen=True)
class Timing:
    """The repeats of one candidate.

    Attributes
    ----------
    seconds : tuple of float
        One per round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest, in seconds."""
        return min(self.seconds), max(self.seconds)

    def rate(self, amount: float) -> tuple[float, tuple[float, float]]:
        """Turn seconds into amount per second: the median, and its spread from slowest to fastest.

        Parameters
        ----------
        amount : float
            What one run does, for example a number of texts.

        Returns
        -------
        tuple of float and tuple of float
        """
        low, high = self.spread
        return amount / self.median, (amount / high, amount / low)


def side_by_side(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    warmup: int = 1,
    rotate: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every candidate once per round, for several rounds.

    A shared machine changes its speed from minute to minute. Within a round the candidates meet the same
    conditions, so their ratio holds where their seconds do not.

    Parameters
    ----------
    candidates : mapping of str to callable
    repeats : int
        Rounds that count, at least 3.
    warmup : int
        Rounds before, that do not.
    rotate : bool
        Whether another candidate begins each round, so that none always finds the caches as the same other
        one left them.
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    dict of str to Timing
        In the order of the candidates; entry `i` of each belongs to round `i`.

    Raises
    ------
    ValueError
        For fewer than 3 repeats: two numbers have no middle.
    """
    if repeats < 3:
        raise ValueError(f"repeats is {repeats}, expected at least 3 for a median and a spread")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates.items())
    for turn in range(warmup + repeats):
        for name, run in order:
            start = clock()
            run()
            if turn >= warmup:
                seconds[name].append(clock() - start)
        if rotate:
            order = order[1:] + order[:1]
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratio(slow: Timing, fast: Timing) -> tuple[float, tuple[float, float]]:
    """Say how many times faster one candidate is than another, round by round.

    Parameters
    ----------
    slow, fast : Timing
        From one call of `side_by_side`.

    Returns
    -------
    median : float
    spread : tuple of float
        Lowest and highest ratio of a round.
    """
    ratios = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    return statistics.median(ratios), (min(ratios), max(ratios))
