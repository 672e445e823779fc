"""Calibration errors are the textbook's, their noise is known, and temperature changes no prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import softmax
from torchmetrics.classification import MulticlassCalibrationError

from companion.training.calibration import (
    brier_score,
    calibrated_ece,
    ece_interval,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    reliability_diagram,
)

# Bins of a quarter: nothing below 0.5 can be the larger of two probabilities.
# confidence  0.6 right, 0.7 wrong | 0.8 right, 1.0 right, 1.0 wrong
HAND = np.array([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [1.0, 0.0], [0.0, 1.0]])
HAND_LABELS = np.array([0, 0, 1, 0, 0])


def drawn(n: int, classes: int = 3, *, seed: int = 0, sharpness: float = 2.0):
    """Return logits and labels drawn from the softmax of these logits: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (n, classes))
    labels = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, np.minimum(labels, classes - 1)


def torchmetrics_error(probabilities, labels, bins: int, norm: str) -> float:
    metric = MulticlassCalibrationError(num_classes=probabilities.shape[1], n_bins=bins, norm=norm)
    return float(metric(torch.from_numpy(probabilities), torch.from_numpy(labels)))


def test_a_case_by_hand():
    found = reliability(HAND, HAND_LABELS, bins=4)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.count.tolist() == [0, 0, 2, 3]
    assert np.isnan(found.confidence[:2]).all()
    assert np.isnan(found.accuracy[:2]).all()
    assert found.confidence[2:] == pytest.approx([1.3 / 2, 2.8 / 3])
    assert found.accuracy[2:] == pytest.approx([1 / 2, 2 / 3])
    assert found.ece == pytest.approx((2 * 0.15 + 3 * (2.8 - 2) / 3) / 5)
    assert found.mce == pytest.approx(0.8 / 3)
    assert (found.n, found.overall_accuracy, found.mean_confidence) == (
        5,
        pytest.approx(0.6),
        pytest.approx(0.82),
    )


def test_the_outermost_confidences_have_a_bin():
    """Also a row of many classes: its largest probability can fall to 1 / classes, never to 0."""
    sure = reliability([[0.0, 1.0], [1.0, 0.0]], [1, 1], bins=10)
    assert sure.count.tolist() == [0] * 9 + [2]
    assert sure.ece == pytest.approx(0.5)
    unsure = reliability(np.full((3, 40), 1 / 40), [0, 1, 2], bins=10)
    assert unsure.count.tolist() == [3] + [0] * 9


def test_confidence_is_not_the_probability_of_the_positive_class():
    found = reliability([[0.9, 0.1]] * 10, [0] * 9 + [1], bins=10)
    assert found.ece == pytest.approx(0)
    assert found.accuracy[9] == pytest.approx(0.9)


def test_a_confidence_on_an_edge_begins_the_next_bin():
    assert reliability([[0.25, 0.75], [0.26, 0.74]], [1, 1], bins=4).count.tolist() == [0, 0, 1, 1]


def test_a_float32_row_that_exceeds_1_is_taken_as_1():
    above = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0]], dtype=np.float32)
    assert reliability(above, [0]).ece == 0


@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("classes", [2, 5])
def test_agrees_with_torchmetrics_below_confidence_1(bins, classes):
    logits, labels = drawn(800, classes, seed=bins, sharpness=1.0)
    probabilities = softmax(2 * logits, axis=1)  # overconfident, so that there is something to find
    assert probabilities.max() < 1 - 1e-7, "confidence 1 is where the two differ"
    found = reliability(probabilities, labels, bins=bins)
    assert found.ece > 0.03
    assert found.ece == pytest.approx(torchmetrics_error(probabilities, labels, bins, "l1"), abs=1e-6)
    assert found.mce == pytest.approx(torchmetrics_error(probabilities, labels, bins, "max"), abs=1e-6)


def test_confidence_1_shares_the_last_bin_with_its_neighbours():
    """Both predictions lie in the bin from 0.9 to 1, where they average (0.95 + 1) / 2 against 1 / 2.

    torchmetrics up to at least 1.9 counts the second one in a bin of its own (its issue 3510). When this
    assertion on it fails, it has been repaired and the two agree: then keep the agreement.
    """
    probabilities, labels = np.array([[0.05, 0.95], [0.0, 1.0]]), np.array([1, 0])
    assert reliability(probabilities, labels, bins=10).ece == pytest.approx(0.475)
    assert torchmetrics_error(probabilities, labels, 10, "l1") == pytest.approx((0.05 + 1) / 2)


def test_quantile_bins_hold_equally_many():
    logits, labels = drawn(1000)
    found = reliability(softmax(logits, axis=1), labels, bins=8, strategy="quantile")
    assert found.count.tolist() == [125] * 8
    assert found.edges[-1] == pytest.approx(softmax(logits, axis=1).max())


def test_quantile_bins_keep_equal_confidences_together():
    rows = np.array([[0.0, 1.0]] * 90 + [[0.4, 0.6]] * 10)
    found = reliability(rows, [1] * 100, bins=10, strategy="quantile")
    assert sorted(found.count.tolist())[-1] == 90
    assert found.n == 100
    alone = reliability([[0.3, 0.7]] * 4, [1, 1, 0, 0], bins=5, strategy="quantile")
    assert (alone.count.tolist(), alone.ece) == ([4], pytest.approx(0.2))


def distributions():
    shape = st.tuples(st.integers(1, 25), st.integers(2, 4))
    weights = arrays.arrays(np.float64, shape, elements=st.integers(0, 12).map(float))
    rows = weights.map(lambda w: w + (w.sum(1, keepdims=True) == 0))
    return rows.map(lambda w: w / w.sum(axis=1, keepdims=True))


@settings(max_examples=60, deadline=None)
@given(distributions(), st.integers(1, 20), st.sampled_from(["uniform", "quantile"]), st.randoms())
def test_what_holds_for_every_input(probabilities, bins, strategy, random):
    n, classes = probabilities.shape
    labels = np.array([random.randrange(classes) for _ in range(n)])
    found = reliability(probabilities, labels, bins=bins, strategy=strategy)
    assert found.n == n
    assert 0 <= found.ece <= found.mce + 1e-12
    assert found.mce <= 1
    # Bins can only add to the gap of all examples taken together (triangle inequality).
    assert found.ece >= abs(found.overall_accuracy - found.mean_confidence) - 1e-12
    order = random.sample(range(n), n)
    again = reliability(probabilities[order], labels[order], bins=bins, strategy=strategy)
    assert again.count.tolist() == found.count.tolist()
    assert (again.ece, again.mce) == (pytest.approx(found.ece), pytest.approx(found.mce))
    assert 0 <= brier_score(probabilities, labels) <= 2


def test_scores_by_hand():
    rows, labels = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [1, 1]
    assert brier_score(rows, labels) == pytest.approx((0.25 + 0.5625 + 0.0625) / 2)
    assert negative_log_likelihood(rows, labels) == pytest.approx(math.log(4) / 2)
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == math.inf


def test_noise_alone_is_told_from_miscalibration():
    logits, labels = drawn(300)
    honest, boastful = softmax(logits, axis=1), softmax(2.5 * logits, axis=1)
    noise = calibrated_ece(honest, labels, resamples=300)
    assert noise.observed == pytest.approx(reliability(honest, labels).ece)
    assert noise.observed < noise.upper
    assert noise.p_value > 0.05
    fault = calibrated_ece(boastful, labels, resamples=300)
    assert fault.observed > 2 * fault.upper
    assert fault.p_value == pytest.approx(1 / 301)


def test_the_ece_of_a_calibrated_model_falls_with_n():
    few, many = (
        calibrated_ece(softmax(logits, axis=1), labels, resamples=200)
        for logits, labels in (drawn(100), drawn(6400))
    )
    # Noise shrinks as the square root of n: eightfold here.
    assert few.mean / many.mean == pytest.approx(8, rel=0.4)


def test_interval_holds_the_true_value_and_is_seeded():
    """Of a model that claims 0.9 and is right in 7 of 10 cases the ECE is 0.2, whatever the bins."""
    inside = 0
    for seed in range(40):
        right = np.random.default_rng(seed).random(200) < 0.7
        low, high = ece_interval(np.tile([0.1, 0.9], (200, 1)), right.astype(int), resamples=200, seed=seed)
        assert 0 < low < high < 1
        inside += low <= 0.2 <= high
    assert 33 <= inside <= 40
    logits, labels = drawn(60)
    rows = softmax(logits, axis=1)
    first = ece_interval(rows, labels, resamples=100)
    assert first == ece_interval(rows, labels, resamples=100)
    assert first != ece_interval(rows, labels, resamples=100, seed=1)


def test_interval_of_a_calibrated_model_reaches_down_to_nothing():
    """The reason for the basic interval: percentiles of the resampled ECE begin above the noise."""
    logits, labels = drawn(200)
    low, high = ece_interval(softmax(logits, axis=1), labels, resamples=300)
    assert low == 0
    assert high < 2 * reliability(softmax(logits, axis=1), labels).ece


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_temperature_is_recovered(factor):
    logits, labels = drawn(8000)
    found = fit_temperature(factor * logits, labels)
    assert found.value == pytest.approx(factor, rel=0.06)
    assert found.at_bound is None
    assert found.nll_after <= found.nll_before
    assert found.nll_before == pytest.approx(
        negative_log_likelihood(softmax(factor * logits, axis=1), labels)
    )
    assert found.nll_after == pytest.approx(negative_log_likelihood(found.apply(factor * logits), labels))
    for other in (0.9, 1.1):
        assert found.nll_after < negative_log_likelihood(
            softmax(factor * logits / (found.value * other), axis=1), labels
        )


def test_temperature_repairs_the_calibration():
    logits, labels = drawn(4000)
    fitted = fit_temperature(3 * logits[:2000], labels[:2000])
    before = reliability(softmax(3 * logits[2000:], axis=1), labels[2000:])
    after = reliability(fitted.apply(3 * logits[2000:]), labels[2000:])
    assert after.ece < before.ece / 3
    assert after.overall_accuracy == before.overall_accuracy


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(2, 20), st.integers(2, 5)), elements=st.integers(-300, 300)
    ),
    st.randoms(),
)
def test_temperature_changes_no_prediction(hundredths, random):
    logits = hundredths / 100
    labels = np.array([random.randrange(logits.shape[1]) for _ in logits])
    if np.ptp(logits, axis=1).max() == 0:
        with pytest.raises(ValueError, match="every row of logits is constant"):
            fit_temperature(logits, labels)
        return
    found = fit_temperature(logits, labels)
    assert (found.apply(logits).argmax(axis=1) == logits.argmax(axis=1)).all()
    assert found.nll_after <= found.nll_before + 1e-9


def test_a_fit_that_runs_into_its_bounds_says_so():
    logits, labels = drawn(100)
    always_right = fit_temperature(logits, logits.argmax(axis=1))
    assert (always_right.at_bound, always_right.value) == ("low", 0.05)
    always_wrong = fit_temperature(logits, logits.argmin(axis=1), bounds=(0.1, 7.0))
    assert (always_wrong.at_bound, always_wrong.value) == ("high", 7.0)
    assert fit_temperature(3 * logits, labels, bounds=(0.5, 2.0)).at_bound == "high"


def test_the_diagram_states_the_finding_and_shows_the_counts():
    plot = reliability_diagram(reliability(HAND, HAND_LABELS, bins=4))
    assert plot.alt == (
        "Reliability of 5 predictions: mean confidence 0.820 against accuracy 0.600, overconfident by 0.220 "
        "on the whole; expected calibration error 0.220. The largest gap is 0.267, in the bin from 0.75 to "
        "1.00 with 3 examples: confidence 0.933, accuracy 0.667."
    )
    for text in (">2<", ">3<", "confidence (probability)", "accuracy (share)", "examples"):
        assert text in plot.svg.replace("> ", ">")
    assert (
        reliability_diagram(reliability(HAND, HAND_LABELS), alt="A finding in words.").alt
        == "A finding in words."
    )
    logits, labels = drawn(100)
    many = reliability(softmax(logits, axis=1), labels, bins=30, strategy="quantile")
    assert "Reliability of 100 predictions" in reliability_diagram(many).alt


@pytest.mark.parametrize(
    ("probabilities", "labels", "words"),
    [
        (np.empty((0, 2)), [], r"shape \(0, 2\).*at least one row"),
        ([0.2, 0.8], [0, 1], r"shape \(2,\).*of a binary model give both columns"),
        ([[0.2], [0.8]], [0, 1], r"shape \(2, 1\)"),
        ([[0.2, 0.8]], [2], "label 2 of row 0 found, expected 0 to 1"),
        ([[0.2, 0.8]] * 2, [1, -1], "label -1 of row 1"),
        ([[0.2, 0.8]], [0, 1], r"labels have shape \(2,\), expected \(1,\)"),
        ([[0.2, 0.8]], [1.0], "type float64, expected whole numbers"),
        ([[0.2, 0.8], [0.5, 0.6]], [1, 1], "row 1 sum to 1.1, expected 1: pass the logits through softmax"),
        ([[-0.5, 1.5]], [1], "row 0 hold -0.5: pass the logits"),
        ([[0.5, 0.5], [math.nan, 1.0]], [1, 1], "row 1 hold NaN or infinity"),
        ([["a", "b"]], [1], "expected numbers"),
    ],
)
@pytest.mark.parametrize(
    "measure", [reliability, brier_score, negative_log_likelihood, ece_interval, calibrated_ece]
)
def test_input_that_is_no_classification_is_named(measure, probabilities, labels, words):
    with pytest.raises(ValueError, match=words):
        measure(probabilities, labels)


def test_choices_that_cannot_work_are_named():
    with pytest.raises(ValueError, match="bins is 0"):
        reliability(HAND, HAND_LABELS, bins=0)
    with pytest.raises(ValueError, match="strategy is 'equal'"):
        reliability(HAND, HAND_LABELS, strategy="equal")
    with pytest.raises(ValueError, match="at least 2 expected for a bootstrap"):
        ece_interval(HAND[:1], HAND_LABELS[:1])
    with pytest.raises(ValueError, match="level is 95"):
        ece_interval(HAND, HAND_LABELS, level=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        calibrated_ece(HAND, HAND_LABELS, resamples=0)
    with pytest.raises(ValueError, match="logits of row 0 hold NaN"):
        fit_temperature([[math.nan, 0.0]], [0])
    with pytest.raises(ValueError, match="label 2 of row 0"):
        fit_temperature([[1.0, 0.0]], [2])
    with pytest.raises(ValueError, match="bounds"):
        fit_temperature([[1.0, 0.0]], [0], bounds=(2.0, 1.0))
