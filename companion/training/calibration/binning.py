"""Confidence against accuracy, bin by bin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from companion.training.calibration.checks import Floats, Ints, checked, top

__all__ = ["Reliability", "Strategy", "binned", "expected_calibration_error", "reliability"]

Strategy = Literal["uniform", "quantile"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy, bin by bin.

    Attributes
    ----------
    edges : ndarray of float64, shape (bins + 1,)
        Bin `i` holds confidences from `edges[i]` up to, not including, `edges[i + 1]`; the last bin
        includes its upper edge.
    count : ndarray of int64, shape (bins,)
        Examples in each bin.
    confidence, accuracy : ndarray of float64, shape (bins,)
        Mean confidence and share of right predictions; NaN in an empty bin.
    """

    edges: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def n(self) -> int:
        """Number of examples."""
        return int(self.count.sum())

    @property
    def mean_confidence(self) -> float:
        """Mean confidence over all examples."""
        return float(np.nansum(self.count * self.confidence) / self.n)

    @property
    def overall_accuracy(self) -> float:
        """Share of right predictions over all examples."""
        return float(np.nansum(self.count * self.accuracy) / self.n)

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap, each bin weighted by its count (Naeini et al. 2015).

        It is biased upwards when bins hold few examples; compare it with :func:`calibrated_ece`.
        """
        return float(np.nansum(self.count * np.abs(self.accuracy - self.confidence)) / self.n)

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap of a bin that holds examples (Naeini et al. 2015)."""
        return float(np.nanmax(np.abs(self.accuracy - self.confidence)))


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, strategy: Strategy = "uniform"
) -> Reliability:
    """Sort predictions by confidence into bins and measure accuracy in each (Guo et al. 2017).

    Parameters
    ----------
    probabilities : array, shape (n, classes)
        Rows sum to 1.
    labels : array of int, shape (n,)
        True class indices.
    bins : int
    strategy : {"uniform", "quantile"}
        Bins of equal width over 0 to 1, or of equal count over the confidences found. Equal confidences
        stay together, so quantile bins can be fewer than asked for.

    Returns
    -------
    Reliability

    Raises
    ------
    ValueError
        If shapes do not match, nothing is given, a value is not finite, a row is no distribution, or a
        label is not a class.
    """
    confidence, right = top(*checked(probabilities, labels))
    edges, index = binned(confidence, bins, strategy)
    count = np.bincount(index, minlength=len(edges) - 1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        means = [np.bincount(index, values, len(edges) - 1) / count for values in (confidence, right)]
    return Reliability(edges, count, *means)


def binned(confidence: Floats, bins: int, strategy: Strategy) -> tuple[Floats, Ints]:
    """Return bin edges, shape (bins + 1,), and the bin of each confidence, shape (n,)."""
    if not isinstance(bins, int | np.integer) or isinstance(bins, bool) or bins < 1:
        raise ValueError(f"bins is {bins!r}, expected a whole number of at least 1")
    edges: Floats
    if strategy == "uniform":
        edges = np.linspace(0, 1, int(bins) + 1)
    elif strategy == "quantile":
        edges = np.unique(np.quantile(confidence, np.linspace(0, 1, int(bins) + 1)))
        if len(edges) == 1:  # one confidence for all: one bin, without width
            edges = np.repeat(edges, 2)
    else:
        raise ValueError(f"strategy is {strategy!r}, expected 'uniform' or 'quantile'")
    # Clipping puts a confidence on the uppermost edge, 1.0 above all, into the last bin: no bin begins there.
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, len(edges) - 2)
    return edges, index


def expected_calibration_error(gaps: Floats, index: Ints) -> float:
    """Compute the ECE of signed gaps (right minus confidence), shape (n,), in bins `index`, shape (n,)."""
    return float(np.abs(np.bincount(index, gaps)).sum() / len(gaps))
