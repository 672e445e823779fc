"""How far chance can move a percentile, a share, or the difference of two shares.

Importing this module imports neither numpy nor scipy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

__all__ = [
    "LEVEL",
    "Estimate",
    "Percentile",
    "check_level",
    "paired_difference",
    "percentile",
    "proportion",
    "runs_needed",
]

LEVEL = 0.95
"""The confidence level where none is given."""

_HALVINGS = 60
"""Of an interval 2 wide: far below what a float64 difference of shares can hold."""


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval.

    Attributes
    ----------
    value, low, high : float
        `low` and `high` enclose `value`.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by their names."""
        return asdict(self)


@dataclass(frozen=True)
class Percentile:
    """A percentile of some runs, or the reason why they cannot tell it.

    Attributes
    ----------
    percent : float
        50 for the median.
    estimate : Estimate or None
        In the unit of the runs. All three numbers are runs that happened, none is interpolated.
    reason : str or None
        Why there is no estimate.
    """

    percent: float
    estimate: Estimate | None
    reason: str | None = None

    @property
    def name(self) -> str:
        """Such as ``"p99"``."""
        return f"p{self.percent:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: either ``value``, ``low`` and ``high``, or ``reason``."""
        found = {"reason": self.reason} if self.estimate is None else self.estimate.to_dict()
        return {"percent": self.percent, **found}


def percentile(values: Sequence[float], percent: float, *, level: float = LEVEL) -> Percentile:
    """Estimate a percentile without assuming anything about the distribution.

    How many of `n` independent values fall below the true percentile is binomial, whatever they are
    distributed like. So the interval reaches from one of the sorted values to another: the closest two that
    the percentile leaves on either side with at most half of the error probability each [1]_. Where even the
    smallest or the largest value is not far enough out, there is no such interval, and no estimate is given.

    Latencies that follow each other are not quite independent: what slows one run down may slow down the
    next. Then the true coverage is below `level`.

    Parameters
    ----------
    values : sequence of float
    percent : float
        Above 0 and below 100.
    level : float
        Nominal coverage.

    Returns
    -------
    Percentile

    Raises
    ------
    ValueError
        When `percent` or `level` is out of range, or a value is not finite.

    References
    ----------
    .. [1] Hahn and Meeker, "Statistical Intervals: A Guide for Practitioners", Wiley 1991, section 5.2.
    """
    needed, n = runs_needed(percent, level=level), len(values)
    if not all(map(math.isfinite, values)):
        raise ValueError("a value is NaN or infinite, expected numbers: look at how they were measured")
    if n < needed:
        reason = f"p{percent:g} needs at least {needed} runs for a {level:.0%} interval, there are {n}"
        return Percentile(percent, None, reason)
    ordered, quantile = sorted(values), percent / 100
    low, high = _ranks(n, quantile, (1 - level) / 2)
    value = ordered[math.ceil(round(n * quantile, 9)) - 1]
    return Percentile(percent, Estimate(value, ordered[low - 1], ordered[high - 1]))


@lru_cache(maxsize=256)
def _ranks(n: int, quantile: float, tail: float) -> tuple[int, int]:
    """Find which of `n` sorted values, from 1, leave the quantile outside with at most `tail` on either side.

    The number of values below the quantile is binomial. Its tails are summed from their thin ends, without
    scipy: a server tells its percentiles, too, and has no room for that.
    """

    def probability(count: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
        return math.exp(ways + count * math.log(quantile) + (n - count) * math.log1p(-quantile))

    # So far out, nothing adds to a sum of floats: twelve standard deviations, or as many rare values.
    reach = math.ceil(12 * math.sqrt(n * quantile * (1 - quantile)) + 24)
    first, last = max(0, math.floor(n * quantile) - reach), min(n, math.ceil(n * quantile) + reach)
    low, below = first, probability(first)
    while below <= tail:  # at most `low` values are below the quantile
        low += 1
        below += probability(low)
    high, above = last, 0.0
    while above + probability(high) <= tail:  # at least `high` values are below the quantile
        above += probability(high)
        high -= 1
    return max(low, 1), min(high + 1, n)


def runs_needed(percent: float, *, level: float = LEVEL) -> int:
    """Count the runs from which on a percentile has an interval with two ends.

    Parameters
    ----------
    percent : float
        Above 0 and below 100.
    level : float

    Returns
    -------
    int
        The first `n` for which all runs lie on one side of the percentile with at most half of the error
        probability.

    Raises
    ------
    ValueError
        When `percent` or `level` is out of range.
    """
    check_level(level)
    if not 0 < percent < 100:
        raise ValueError(f"percent is {percent}, expected a number between 0 and 100 such as 99")
    rarer = max(percent, 100 - percent) / 100
    return math.ceil(math.log((1 - level) / 2) / math.log(rarer))


def proportion(count: int, total: int, *, level: float = LEVEL) -> Estimate:
    """Estimate a share with the exact interval of Clopper and Pearson [1]_.

    It covers the truth with at least the nominal probability for every share and every `total`.

    Parameters
    ----------
    count, total : int
        So many of so many.
    level : float

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        When the counts are not counts, or `level` is out of range.

    References
    ----------
    .. [1] Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
       binomial", Biometrika 26, 1934.
    """
    check_level(level)
    if total < 1 or not 0 <= count <= total:
        raise ValueError(f"found {count} of {total}, expected a count from 0 up to a total of at least 1")
    from scipy.stats import binomtest

    ends = binomtest(count, total).proportion_ci(level, method="exact")
    return Estimate(count / total, float(ends.low), float(ends.high))


def paired_difference(worse: float, better: float, total: float, *, level: float = LEVEL) -> Estimate:
    """Estimate the difference of two shares that were counted on the same examples, with Tango's interval.

    Examples on which both are right, or both wrong, say nothing about the difference: only the two kinds of
    disagreement do, as in McNemar's test. The interval holds every difference that the score test does not
    reject [1]_. Without any disagreement it still has a width, of ``z**2 / (total + z**2)`` on either side.

    Parameters
    ----------
    worse : float
        Examples that only the first gets right.
    better : float
        Examples that only the second gets right.
    total : float
        All examples. (Expected counts, which need not be whole, are welcome.)
    level : float

    Returns
    -------
    Estimate
        Of the first share minus the second.

    Raises
    ------
    ValueError
        When the counts do not fit each other, or `level` is out of range.

    References
    ----------
    .. [1] Tango, "Equivalence test and confidence interval for the difference in proportions for the
       paired-sample design", Statistics in Medicine 17, 1998.
    """
    check_level(level)
    if min(worse, better) < 0 or total <= 0 or worse + better > total:
        raise ValueError(
            f"found {worse:g} and {better:g} of {total:g}, expected two counts that together are no more"
        )
    z = NormalDist().inv_cdf((1 + level) / 2)

    def score(difference: float) -> float:
        a, b = 2 * total, (2 * total - worse + better) * difference - worse - better
        c = -better * difference * (1 - difference)
        only_second = (math.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
        variance = total * (2 * only_second + difference * (1 - difference))
        gap = worse - better - total * difference
        return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0

    value = (worse - better) / total
    low = _boundary(lambda difference: score(difference) <= z, -1.0, value)
    high = _boundary(lambda difference: score(difference) >= -z, 1.0, value)
    return Estimate(value, low, high)


def check_level(level: float) -> None:
    """Refuse a confidence level that is none.

    Parameters
    ----------
    level : float

    Raises
    ------
    ValueError
        Outside 0 to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a share between 0 and 1 such as 0.95")


def _boundary(inside: Callable[[float], bool], outer: float, inner: float) -> float:
    """Find the end of an interval between a point outside, or on its edge, and one inside."""
    if inside(outer):
        return outer
    for _ in range(_HALVINGS):
        middle = (outer + inner) / 2
        if inside(middle):
            inner = middle
        else:
            outer = middle
    return inner
