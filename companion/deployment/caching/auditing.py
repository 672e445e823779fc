"""Watches a stream of audited hits and says when more of them are false than was promised."""

from __future__ import annotations

import math

__all__ = ["FalseHitAlarm"]


class FalseHitAlarm:
    """Rings when the share of false hits has risen above its budget.

    Each audit multiplies a likelihood ratio: how much better a share of `times` the budget explains it than
    the budget does. While the share is within the budget the product is not expected to grow, so it reaches
    the bound in no time span more often than once in `patience` audits on average, however often one looks;
    falling below one it begins anew, so that a good past does not hide a bad present. (The cumulative sum of
    Page [1]_; for its false alarms see [2]_.)

    Parameters
    ----------
    budget : float
        The share that may be false.
    patience : int
        Mean number of audits between two false alarms, at least.
    times : float
        The alternative that is found fastest, in budgets.

    Raises
    ------
    ValueError
        When the arguments leave nothing to find.

    References
    ----------
    .. [1] Page, "Continuous inspection schemes", Biometrika 41, 1954.
    .. [2] Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change
       detection", 2022.
    """

    def __init__(self, budget: float, *, patience: int = 10_000, times: float = 5.0) -> None:
        if not 0 < budget < 1 or patience < 2 or not times > 1:
            raise ValueError(
                f"FalseHitAlarm: budget is {budget}, patience {patience}, times {times}; expected a share "
                "between 0 and 1, at least 2, more than 1"
            )
        worse = min(budget * times, (1 + budget) / 2)
        self._false, self._right = math.log(worse / budget), math.log1p(-worse) - math.log1p(-budget)
        self._bound = math.log(patience)
        self._evidence = 0.0

    def audited(self, right: bool) -> bool:
        """Take one audit into account; True when the alarm rings."""
        self._evidence = max(self._evidence, 0.0) + (self._right if right else self._false)
        return self._evidence >= self._bound
