"""Whether a classifier's confidence can be believed: reliability, its noise, and temperature scaling.

Confidence is the largest probability of a row, also with two classes: a binary model that gives the
positive class 0.1 predicts the negative one with confidence 0.9. Everything here is numpy and scipy.
"""

from __future__ import annotations

from companion.training.calibration.binning import Reliability, Strategy, reliability
from companion.training.calibration.diagram import reliability_diagram
from companion.training.calibration.noise import CalibratedECE, calibrated_ece, ece_interval
from companion.training.calibration.scores import brier_score, negative_log_likelihood
from companion.training.calibration.temperature import Temperature, fit_temperature

__all__ = [
    "CalibratedECE",
    "Reliability",
    "Strategy",
    "Temperature",
    "brier_score",
    "calibrated_ece",
    "ece_interval",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability",
    "reliability_diagram",
]
