"""Temperature scaling: one number that repairs confidence and leaves every prediction alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from companion.training.calibration.checks import Floats, class_indices, matrix

__all__ = ["Temperature", "fit_temperature"]


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes
    ----------
    value : float
        Logits are divided by it: above 1 it softens an overconfident model, below 1 it sharpens.
    nll_before, nll_after : float
        Mean negative log likelihood in nats at temperature 1 and at `value`.
    at_bound : {"low", "high"} or None
        Which end of the searched range the fit ran into. The value is then not an optimum: "low" comes
        from logits that are always right, "high" from logits that say nothing.
    """

    value: float
    nll_before: float
    nll_after: float
    at_bound: Literal["low", "high"] | None

    def apply(self, logits: ArrayLike) -> Floats:
        """Turn logits into calibrated probabilities; the predicted class stays what it was.

        Parameters
        ----------
        logits : array, shape (n, classes)

        Returns
        -------
        ndarray of float64, shape (n, classes)
        """
        scaled: Floats = softmax(matrix(logits, "logits") / self.value, axis=1)
        return scaled


def fit_temperature(
    logits: ArrayLike, labels: ArrayLike, *, bounds: tuple[float, float] = (0.05, 20.0)
) -> Temperature:
    """Find the temperature that minimises the negative log likelihood (Guo et al. 2017).

    Fit it on held-out data: on its training data a model looks better than it is, and so does its
    confidence. The likelihood is convex in 1/T, hence has one minimum in log T, which is searched.

    Parameters
    ----------
    logits : array, shape (n, classes)
    labels : array of int, shape (n,)
    bounds : tuple of float
        Lowest and highest temperature to consider.

    Returns
    -------
    Temperature

    Raises
    ------
    ValueError
        If shapes do not match, nothing is given, a value is not finite, a label is not a class, the
        bounds are not in order, or no row prefers any class.
    """
    rows = matrix(logits, "logits")
    truth = class_indices(labels, rows)
    low, high = bounds
    if not 0 < low < high < np.inf:
        raise ValueError(f"bounds {bounds} found, expected 0 < lowest < highest, both finite")
    if np.ptp(rows, axis=1).max() == 0:
        raise ValueError("every row of logits is constant: no temperature changes it; check the model")
    places = np.arange(len(truth))

    def nll(log_temperature: float) -> float:
        return float(-log_softmax(rows / np.exp(log_temperature), axis=1)[places, truth].mean())

    found = minimize_scalar(
        nll, bounds=(np.log(low), np.log(high)), method="bounded", options={"xatol": 1e-7}
    )
    candidates: list[tuple[float, float, Literal["low", "high"] | None]] = [
        # The search never evaluates the ends themselves; a tie with one of them is no optimum inside.
        (nll(np.log(low)), low, "low"),
        (nll(np.log(high)), high, "high"),
        (float(found.fun), float(np.exp(found.x)), None),
    ]
    after, value, at_bound = min(candidates, key=lambda candidate: candidate[0])
    return Temperature(value, nll(0.0), after, at_bound)
