"""Proper scores: they fall only when probabilities come nearer to the truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from companion.training.calibration.checks import checked

__all__ = ["brier_score", "negative_log_likelihood"]


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean squared distance to the one-hot label, summed over classes (Brier 1950): 0 to 2.

    Parameters
    ----------
    probabilities : array, shape (n, classes)
    labels : array of int, shape (n,)

    Returns
    -------
    float

    Raises
    ------
    ValueError
        As :func:`reliability` does.
    """
    rows, truth = checked(probabilities, labels)
    return float(((rows - np.eye(rows.shape[1])[truth]) ** 2).sum(axis=1).mean())


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Compute the mean of -log p(true class), in nats; infinite when a true class was given 0.

    Parameters
    ----------
    probabilities : array, shape (n, classes)
    labels : array of int, shape (n,)

    Returns
    -------
    float

    Raises
    ------
    ValueError
        As :func:`reliability` does.
    """
    rows, truth = checked(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(rows[np.arange(len(truth)), truth]).mean())
