"""Whether the memory of a process grows: a slope with an interval, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from companion.inference.intervals import Estimate, check_level

__all__ = ["Growth", "MemorySample", "growth_of"]

_BLOCKS = 10

_LEVEL = 0.99
"""Of several ways to manage memory one in twenty should not be called a leak by chance."""


@dataclass(frozen=True)
class MemorySample:
    """Resident memory of the process after so many requests.

    Attributes
    ----------
    requests : int
    bytes : int
    """

    requests: int
    bytes: int


@dataclass(frozen=True)
class Growth:
    """How fast memory grows once it is warm.

    Attributes
    ----------
    slope : Estimate
        Bytes per thousand requests.
    tolerance : float
        Bytes per thousand requests that are taken for none.
    """

    slope: Estimate
    tolerance: float

    @property
    def verdict(self) -> str:
        """``"grows"``, ``"steady"``, or ``"not decided"`` where the interval reaches across the tolerance."""
        if self.slope.low > self.tolerance:
            return "grows"
        return "steady" if self.slope.high <= self.tolerance else "not decided"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"slope": self.slope.to_dict(), "tolerance": self.tolerance, "verdict": self.verdict}


def growth_of(
    samples: Sequence[MemorySample], *, tolerance: float = 1e6, warmup: float = 1 / 3, level: float = _LEVEL
) -> Growth:
    """Fit a line to the memory of a process after its warm-up.

    A sample is much like the one before it, so the interval of a plain regression would be far too narrow.
    The line is fitted to the means of ten blocks of samples, which depend on each other less.

    Parameters
    ----------
    samples : sequence of MemorySample
        At least 30.
    tolerance : float
        Bytes per thousand requests.
    warmup : float
        Share of the samples that is left out at the beginning.
    level : float
        Of the interval.

    Returns
    -------
    Growth

    Raises
    ------
    ValueError
        When there are too few samples after the warm-up, or `level` is out of range.
    """
    check_level(level)
    rest = samples[math.ceil(warmup * len(samples)) :]
    if len(rest) < 2 * _BLOCKS:
        raise ValueError(
            f"found {len(rest)} samples after the warm-up, expected at least {2 * _BLOCKS} for a slope"
        )
    from scipy.stats import linregress, t

    blocks = np.array_split(np.array([(s.requests, s.bytes) for s in rest], dtype=np.float64), _BLOCKS)
    points = np.array([block.mean(axis=0) for block in blocks])
    line = linregress(points[:, 0] / 1000, points[:, 1])
    reach = float(t.isf((1 - level) / 2, _BLOCKS - 2) * line.stderr)
    slope = float(line.slope)
    return Growth(Estimate(slope, slope - reach, slope + reach), tolerance)
