"""What a batch costs, from its shape: fitted to measured batches, or learned while batches run.

Imports numpy alone: a server groups its requests by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BatchCost", "CostFit", "OnlineCost", "TimedBatch", "fit_cost"]

Floats = NDArray[np.float64]

_ASKED_FOR = 0.9
"""The curved cost has to have at most this share of the straight one's error."""

_CORNERS = ((1, 8), (1, 128), (8, 32), (32, 8), (32, 128))
"""Shapes at which an online cost stays tied to where it started."""


@dataclass(frozen=True)
class TimedBatch:
    """One batch that ran.

    Attributes
    ----------
    rows : int
    longest : int
        Padded length, in tokens.
    seconds : float
    """

    rows: int
    longest: int
    seconds: float


@dataclass(frozen=True)
class BatchCost:
    """Seconds of a batch: ``per_batch + per_token * tokens + per_token_squared * tokens ** 2``.

    Tokens are padded ones: rows times padded length. The square is what a batch costs that no longer fits
    into the processor's caches.

    Attributes
    ----------
    per_batch, per_token, per_token_squared : float
        Seconds, none below 0.
    """

    per_batch: float
    per_token: float
    per_token_squared: float = 0.0

    def seconds(self, rows: ArrayLike, longest: ArrayLike) -> Floats:
        """Return the cost of batches.

        Parameters
        ----------
        rows, longest : int, or arrays of int of one shape
            Texts, and padded length.

        Returns
        -------
        ndarray of float64
            Of that shape.
        """
        tokens = np.asarray(rows) * np.asarray(longest, dtype=np.float64)
        found: Floats = self.per_batch + tokens * (self.per_token + tokens * self.per_token_squared)
        return found

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers by their names."""
        return asdict(self)


@dataclass(frozen=True)
class CostFit:
    """A cost, and how well it describes the batches that it was fitted to.

    Attributes
    ----------
    cost : BatchCost
    batches : int
    error : float
        Of a batch that was left out of the fit: root of the mean squared relative error over all of them.
    worst : float
        The largest of these relative errors.
    """

    cost: BatchCost
    batches: int
    error: float
    worst: float

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    def text(self) -> str:
        """Write one line for a terminal."""
        cost = self.cost
        square = f" + {1e9 * cost.per_token_squared:.3g} ns x tokens^2" if cost.per_token_squared else ""
        return (
            f"{1e3 * cost.per_batch:.3g} ms a batch + {1e6 * cost.per_token:.3g} us a padded token{square}; "
            f"off by {self.error:.0%}, at worst {self.worst:.0%}, on {self.batches} batches, each left out"
        )


def fit_cost(measured: Sequence[TimedBatch], *, curved: bool | None = None) -> CostFit:
    """Fit a cost to measured batches: least squares of the relative errors, no term below 0.

    Parameters
    ----------
    measured : sequence of TimedBatch
        Of at least three different sizes.
    curved : bool, optional
        Whether the cost has a square. Default: if that makes the error of batches that are left out of the
        fit a tenth smaller.

    Returns
    -------
    CostFit

    Raises
    ------
    ValueError
        When there are too few batches, or a time is not above 0.
    """
    sizes = {batch.rows * batch.longest for batch in measured}
    if len(sizes) < 3 + bool(curved):
        raise ValueError(
            f"found batches of {len(sizes)} different sizes, expected at least {3 + bool(curved)} to fit a "
            "cost and to tell its error"
        )
    if not all(batch.seconds > 0 for batch in measured):
        raise ValueError("a batch took 0 seconds or less, expected measured times")
    straight = _fit(measured, 2)
    if curved is False or (curved is None and len(sizes) < 4):
        return straight
    square = _fit(measured, 3)
    return square if curved or square.error <= _ASKED_FOR * straight.error else straight


class OnlineCost:
    """A cost that follows a machine while it works: recursive least squares that forgets.

    Each batch counts half as much after `half_life` further ones. Where no batches of some size come, nothing
    would hold that part of the cost: so a weak memory of the start stays.

    Parameters
    ----------
    start : BatchCost
        Such as `fit_cost` finds when the server warms up.
    half_life : float
        In batches.
    trust : float
        Weight of the start, in batches; small, or it would hold back what a slower machine teaches.

    Raises
    ------
    ValueError
        When a number is not above 0.
    """

    def __init__(self, start: BatchCost, *, half_life: float = 200, trust: float = 0.5) -> None:
        if not (half_life > 0 and trust > 0):
            raise ValueError(f"half_life is {half_life} and trust {trust}, expected numbers above 0")
        self._keep = 0.5 ** (1 / half_life)
        anchors = [
            TimedBatch(rows, longest, float(start.seconds(rows, longest))) for rows, longest in _CORNERS
        ]
        if not all(anchor.seconds > 0 for anchor in anchors):
            raise ValueError("start costs nothing, expected a cost above 0")
        terms = _terms(anchors, 3)
        weight = trust / len(anchors)
        self._start = weight * terms.T @ terms, weight * terms.sum(axis=0)
        self._sums = [0.0] * 5
        self._inverse = [0.0] * 3

    def update(self, rows: int, longest: int, seconds: float) -> None:
        """Learn from a batch that ran.

        Parameters
        ----------
        rows, longest : int
            Texts, and padded length.
        seconds : float
            A time that is not above 0 says that the clock is too coarse, and is left out.
        """
        if not seconds > 0:
            return
        # What `_terms` says of one batch, in plain numbers: this is done for every batch that a server runs.
        tokens, keep, weight = rows * longest, self._keep, 1 / (seconds * seconds)
        for power in range(5):
            self._sums[power] = keep * self._sums[power] + weight
            weight *= tokens
        term = 1 / seconds
        for power in range(3):
            self._inverse[power] = keep * self._inverse[power] + term
            term *= tokens

    @property
    def cost(self) -> BatchCost:
        """What batches cost now."""
        gram = np.array([self._sums[row : row + 3] for row in range(3)])
        return BatchCost(*_non_negative(self._start[0] + gram, self._start[1] + np.array(self._inverse)))


def _fit(measured: Sequence[TimedBatch], count: int) -> CostFit:
    """Fit the first terms to all batches, and predict each from the others."""
    terms = _terms(measured, count)
    gram, moments = terms.T @ terms, terms.sum(axis=0)
    cost = BatchCost(*_non_negative(gram, moments))
    left_out = np.array([row @ _non_negative(gram - np.outer(row, row), moments - row) - 1 for row in terms])
    return CostFit(cost, len(measured), float(np.sqrt(np.mean(left_out**2))), float(np.abs(left_out).max()))


def _terms(measured: Sequence[TimedBatch], count: int) -> Floats:
    """Return 1, tokens and tokens squared of each batch, divided by its seconds: their sum should be 1."""
    tokens = np.array([batch.rows * batch.longest for batch in measured], dtype=np.float64)
    seconds = np.array([batch.seconds for batch in measured])
    terms: Floats = np.stack([tokens**power for power in range(count)], axis=1) / seconds[:, None]
    return terms


def _non_negative(gram: Floats, moments: Floats) -> Floats:
    """Solve least squares with no term below 0: of all choices of terms that may, the best.

    Exact, and with three terms there are seven choices.
    """
    count = len(moments)
    scale = np.sqrt(np.diag(gram))
    gram, moments = gram / np.outer(scale, scale), moments / scale
    best, lowest = np.zeros(count), 0.0
    for size in range(1, count + 1):
        for chosen in combinations(range(count), size):
            part = np.array(chosen)
            solution = np.linalg.lstsq(gram[np.ix_(part, part)], moments[part], rcond=None)[0]
            loss = -float(solution @ moments[part])  # up to a constant
            if loss < lowest and (solution >= 0).all():
                best, lowest = np.zeros(count), loss
                best[part] = solution
    found: Floats = best / scale
    return found
