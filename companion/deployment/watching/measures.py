"""What is compared between two windows: the measures, and how far apart two windows are on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from companion.deployment.watching.columns import Columns

__all__ = ["Measure", "measures_of", "statistic"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["input", "prediction"]
Test = Literal["distribution", "mean", "shares"]

_CELLS = 128
"""A distribution with more values is cut into so many quantiles: what is finer cannot be told from chance."""

_LOWEST = 0.1


@dataclass(frozen=True)
class Measure:
    """One number per answer, of the reference and of the window one behind the other.

    Attributes
    ----------
    name : str
    kind : {"input", "prediction"}
    test : {"distribution", "mean", "shares"}
        What of it is tested. "shares" is for places in a list of labels.
    cells : ndarray of int64, shape (answers,)
        Which part of the pooled distribution an answer falls into.
    values : ndarray of float64, shape (answers,)
        What the test "mean" is about.
    shown : ndarray of float64, shape (answers,)
        What is averaged in the report: the values, or whether they lie far down.
    shown_as : str
        What that average is.
    """

    name: str
    kind: Kind
    test: Test
    cells: Ints
    values: Floats
    shown: Floats
    shown_as: str

    @property
    def width(self) -> int:
        """How many cells there are."""
        return int(self.cells.max()) + 1


def measures_of(reference: Columns, current: Columns) -> tuple[list[Measure], list[str]]:
    """List what can be compared.

    Parameters
    ----------
    reference, current : Columns
        With the same labels.

    Returns
    -------
    list of Measure
    list of str
        Features of the texts that are not known on both sides.
    """
    found, unknown = [], []
    for name, values in current.inputs.items():
        pooled = np.concatenate([reference.inputs[name], values])
        if np.isfinite(pooled).all():
            found.append(Measure(name, "input", "distribution", _cells(pooled), pooled, pooled, "mean"))
        else:
            unknown.append(name)
    if not reference.is_regression:
        chosen = np.concatenate([reference.chosen, current.chosen])
        found.append(Measure("label", "prediction", "shares", chosen, chosen * 1.0, chosen * 1.0, "shares"))
    name = "score" if reference.is_regression else "confidence"
    scores = np.concatenate([reference.scores, current.scores])
    low = float(np.quantile(reference.scores, _LOWEST))
    cells = _cells(scores)
    below = (scores < low).astype(np.float64)
    found.append(Measure(f"mean {name}", "prediction", "mean", cells, scores, scores, "mean"))
    found.append(Measure(name, "prediction", "distribution", cells, scores, below, f"share below {low:.4g}"))
    return found, unknown


def statistic(measure: Measure, members: Ints) -> Floats:
    """Compute how far windows are from what is left of the pool.

    Parameters
    ----------
    measure : Measure
    members : ndarray of int64, shape (windows, size)
        Places in the pool of the answers of each window.

    Returns
    -------
    ndarray of float64, shape (windows,)
        For "mean" the squared distance of the means, for "shares" Pearson's chi-square, for "distribution"
        the statistic of Anderson and Darling for two samples [1]_, on cells. 0 for a window like the rest.

    References
    ----------
    .. [1] Scholz and Stephens, "K-Sample Anderson-Darling Tests", Journal of the American Statistical
       Association 82, 1987, equation 7.
    """
    if measure.test == "mean":
        distance: Floats = (measure.values[members].mean(axis=1) - measure.values.mean()) ** 2
        return distance
    rows, size = members.shape
    pool = np.bincount(measure.cells, minlength=measure.width).astype(np.float64)
    flat = measure.cells[members] + np.arange(rows)[:, None] * measure.width
    inside = np.bincount(flat.ravel(), minlength=rows * measure.width).reshape(rows, measure.width)
    total = len(measure.cells)
    if measure.test == "shares":
        there = pool > 0
        expected = size * pool[there] / total
        chi: Floats = ((inside[:, there] - expected) ** 2 / expected).sum(axis=1) * total / (total - size)
        return chi
    below, below_inside = np.cumsum(pool)[:-1], np.cumsum(inside, axis=1)[:, :-1]
    weight = pool[:-1] / np.maximum(below * (total - below), 1)
    darling: Floats = ((total * below_inside - size * below) ** 2 * weight).sum(axis=1)
    scaled: Floats = darling / (size * (total - size))
    return scaled


def _cells(pooled: Floats) -> Ints:
    """Cut a distribution into parts that depend on the pool alone, not on who is where in it."""
    different, places = np.unique(pooled, return_inverse=True)
    if len(different) <= _CELLS:
        return places.astype(np.int64)
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, _CELLS + 1)[1:-1]))
    # The lowest cell may be empty, which costs nothing.
    cells: Ints = np.searchsorted(edges, pooled, side="right").astype(np.int64)
    return cells
