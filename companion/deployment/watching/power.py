"""How large a window has to be for a shift to be seen."""

from __future__ import annotations

import math
from functools import lru_cache

__all__ = ["answers_needed", "detectable_shift"]

_POWER = 0.8
_VARIANCE = 0.25
"""Of a share of one half, the hardest to see move."""


def detectable_shift(
    reference: int,
    window: int,
    *,
    false_alarms: float,
    measures: int,
    labels: int = 2,
    design_effect: float = 1.0,
    power: float = _POWER,
) -> float:
    """Say how far a label's share has to move from one half for most windows to give an alarm.

    The chi-square test of the label shares, at the rate of false alarms divided among all measures: what the
    test in use can only be better than.

    Parameters
    ----------
    reference, window : int
        Answers on either side.
    false_alarms : float
        The share of windows without drift that may give an alarm.
    measures : int
        Tested together.
    labels : int
        At least 2.
    design_effect : float
        Answers that are worth one independent answer.
    power : float
        The share of windows that shall give an alarm.

    Returns
    -------
    float
        A difference of shares; above 0.5 where nothing could be seen.
    """
    spread = design_effect * _VARIANCE * (1 / reference + 1 / window)
    return math.sqrt(_noncentrality(labels - 1, false_alarms / measures, power) * spread)


def answers_needed(
    shift: float,
    *,
    reference: int,
    false_alarms: float,
    measures: int,
    labels: int = 2,
    design_effect: float = 1.0,
    power: float = _POWER,
) -> int | None:
    """Count the answers from which on a window shows a shift of a label's share.

    Parameters
    ----------
    shift : float
        Between 0 and 0.5.
    reference, false_alarms, measures, labels, design_effect, power
        As for `detectable_shift`.

    Returns
    -------
    int or None
        None where the reference is too small for windows of any size.

    Raises
    ------
    ValueError
        When the shift is no shift.
    """
    if not 0 < shift <= 0.5:
        raise ValueError(f"shift is {shift}, expected a difference of shares above 0 and at most 0.5")
    wanted = _noncentrality(labels - 1, false_alarms / measures, power)
    left = shift**2 / (design_effect * _VARIANCE * wanted) - 1 / reference
    return math.ceil(1 / left) if left > 0 else None


@lru_cache
def _noncentrality(freedom: int, level: float, power: float) -> float:
    """Find how far off a chi-square statistic must be on average to be significant so often."""
    from scipy.optimize import brentq
    from scipy.stats import chi2, ncx2

    limit = chi2.isf(level, freedom)
    return float(brentq(lambda value: ncx2.sf(limit, freedom, value) - power, 1e-6, 1e4))
