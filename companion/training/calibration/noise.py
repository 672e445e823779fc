"""How much of a calibration error is chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

from companion.training.calibration.binning import Strategy, binned, expected_calibration_error
from companion.training.calibration.checks import Floats, check_resamples, checked, top

__all__ = ["CalibratedECE", "calibrated_ece", "ece_interval"]


@dataclass(frozen=True)
class CalibratedECE:
    """The ECE that chance alone gives a perfectly calibrated model of the same confidences.

    Attributes
    ----------
    observed : float
        The ECE of the real labels.
    mean, upper : float
        Mean and 95% quantile of the ECE over the drawn labels. An observed ECE below `upper` is no
        evidence of miscalibration.
    p_value : float
        Share of draws whose ECE is at least the observed one, the observed one counted among them.
    """

    observed: float
    mean: float
    upper: float
    p_value: float


def ece_interval(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 15,
    strategy: Strategy = "uniform",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap a confidence interval for the ECE over examples, with the bins kept.

    The ECE is a mean of absolute gaps, so on average noise adds to it: for small n it is biased upwards, and
    resampling adds the same bias once more. The interval is therefore the basic one (Efron & Tibshirani
    1993, section 13), which mirrors the resampled values at the estimate and so takes the bias off to first
    order; percentiles would often lie wholly above the estimate. It is cut at 0 and 1. For the
    question whether a model is miscalibrated at all, :func:`calibrated_ece` is the sharper tool.

    Parameters
    ----------
    probabilities, labels, bins, strategy
        As for :func:`reliability`.
    level : float
        Nominal coverage, between 0 and 1.
    resamples : int
    seed : int

    Returns
    -------
    tuple of float
        Lower and upper end.

    Raises
    ------
    ValueError
        As :func:`reliability` does, or for fewer than two examples, or a `level` outside 0 to 1.
    """
    confidence, right = top(*checked(probabilities, labels))
    if len(right) < 2:
        raise ValueError("1 example found, at least 2 expected for a bootstrap: give more examples")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a share between 0 and 1 such as 0.95")
    check_resamples(resamples)
    _, index = binned(confidence, bins, strategy)

    def statistic(gaps: Floats, places: Floats) -> float:
        return expected_calibration_error(
            gaps, places.astype(np.int64)
        )  # scipy hands all samples on as floats

    interval = bootstrap(
        (right - confidence, index),
        statistic,
        paired=True,
        vectorized=False,
        method="basic",
        confidence_level=level,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(np.clip(interval.low, 0, 1)), float(np.clip(interval.high, 0, 1))


def calibrated_ece(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 15,
    strategy: Strategy = "uniform",
    resamples: int = 1000,
    seed: int = 0,
) -> CalibratedECE:
    """Measure the ECE that these confidences would show if they were exactly true.

    Each draw makes every prediction right with the probability that its confidence states (consistency
    resampling: Bröcker & Smith 2007; as a test: Vaicenavicius et al. 2019).

    Parameters
    ----------
    probabilities, labels, bins, strategy
        As for :func:`reliability`.
    resamples : int
    seed : int

    Returns
    -------
    CalibratedECE

    Raises
    ------
    ValueError
        As :func:`reliability` does.
    """
    confidence, right = top(*checked(probabilities, labels))
    check_resamples(resamples)
    _, index = binned(confidence, bins, strategy)
    generator = np.random.default_rng(seed)
    observed = expected_calibration_error(right - confidence, index)
    drawn = np.array(
        [
            expected_calibration_error((generator.random(len(right)) < confidence) - confidence, index)
            for _ in range(resamples)
        ]
    )
    # A sum in another order differs in its last bits; such a draw is as large as the observed value.
    above = int((drawn >= observed - 1e-12).sum())
    return CalibratedECE(
        observed, float(drawn.mean()), float(np.quantile(drawn, 0.95)), (above + 1) / (resamples + 1)
    )
