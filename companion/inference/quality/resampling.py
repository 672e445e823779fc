"""Paired bootstrap of the metrics that are no simple share: F1, Matthews and Pearson."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.data import Task

__all__ = ["resampled_correlation", "resampled_score"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def resampled_score(
    task: Task, truth: Ints, reference: Ints, candidate: Ints, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Resample the difference of two F1 or Matthews scores.

    An example counts only by its class and the two answers, so a resample is one multinomial draw over those
    combinations.

    Parameters
    ----------
    task : Task
        Its metric is "f1" or "matthews".
    truth, reference, candidate : ndarray of int64, shape (n,)
        Class indices.
    level : float
    resamples, seed : int

    Returns
    -------
    tuple of float
        Percentiles of the reference's score minus the candidate's.

    Raises
    ------
    ValueError
        For another metric.
    """
    labels = task.num_labels
    cells = np.zeros((labels, labels, labels))
    np.add.at(cells, (truth, reference, candidate), 1)
    for label in range(labels):  # one made-up example of each way to disagree: see `assess`
        for other in range(labels):
            if other != label:
                cells[label, label, other] += 1 / (labels - 1)
                cells[label, other, label] += 1 / (labels - 1)
    drawn = np.random.default_rng(seed).multinomial(len(truth), (cells / cells.sum()).ravel(), resamples)
    counts = drawn.reshape(resamples, labels, labels, labels).astype(np.float64)
    return _ends(_score(task, counts.sum(axis=3)) - _score(task, counts.sum(axis=2)), level)


def resampled_correlation(
    truth: NDArray[Any],
    reference: NDArray[Any],
    candidate: NDArray[Any],
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """Resample the difference of two Pearson correlations.

    Parameters
    ----------
    truth, reference, candidate : ndarray, shape (n,)
    level : float
    resamples, seed : int

    Returns
    -------
    tuple of float
        Percentiles of the reference's correlation minus the candidate's.
    """
    rng = np.random.default_rng(seed)
    columns = np.stack([truth, reference, candidate]).astype(np.float64)
    differences = np.empty(resamples)
    for turn in range(resamples):
        true, one, other = columns[:, rng.integers(columns.shape[1], size=columns.shape[1])]
        differences[turn] = _correlation(true, one) - _correlation(true, other)
    return _ends(differences, level)


def _ends(differences: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _score(task: Task, confusion: Floats) -> Floats:
    """Compute the metric of many confusion matrices, shape (resamples, true, predicted)."""
    hits = np.trace(confusion, axis1=1, axis2=2)
    true, predicted, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    if task.metric == "f1":
        return _divided(2 * confusion[:, 1, 1], true[:, 1] + predicted[:, 1])
    if task.metric == "matthews":
        spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
        return _divided(hits * total - (true * predicted).sum(axis=1), np.sqrt(spread))
    raise ValueError(f"the metric is {task.metric!r}, expected 'f1' or 'matthews'")


def _correlation(one: Floats, other: Floats) -> float:
    """Compute Pearson's correlation; 0 where one side is constant, as `companion.data.score` has it."""
    a, b = one - one.mean(), other - other.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread > 0 else 0.0


def _divided(above: Floats, below: Floats) -> Floats:
    """Divide; 0 where nothing is there to divide by."""
    found: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found
