"""Scores against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from companion.data import TASKS, score


def test_accuracy_from_indices_and_from_logits() -> None:
    assert score(TASKS["sst2"], [0, 1, 1, 0], np.array([0, 1, 0, 0])) == {"accuracy": 0.75}
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.5, 0.1], [0.3, 0.2]])
    assert score(TASKS["sst2"], [0, 1, 1, 0], logits) == {"accuracy": 0.75}


def test_matthews_and_f1() -> None:
    labels, predictions = [1, 1, 1, 0, 0], np.array([1, 1, 0, 0, 1])  # tp 2, fn 1, tn 1, fp 1
    found = score(TASKS["cola"], labels, predictions)
    assert found == {"matthews": pytest.approx((2 * 1 - 1 * 1) / 6), "accuracy": pytest.approx(0.6)}
    assert list(found) == ["matthews", "accuracy"]
    assert score(TASKS["mrpc"], labels, predictions) == {
        "f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1)),
        "accuracy": pytest.approx(0.6),
    }


def test_f1_without_a_positive_is_zero() -> None:
    assert score(TASKS["mrpc"], [0, 0], np.array([0, 0])) == {"f1": 0.0, "accuracy": 1.0}


def test_correlations() -> None:
    labels, predictions = [0.0, 1.0, 2.0, 3.0], np.array([[0.0], [1.0], [4.0], [9.0]], dtype=np.float32)
    found = score(TASKS["stsb"], labels, predictions)
    assert found["pearson"] == pytest.approx(np.corrcoef(labels, predictions[:, 0])[0, 1])
    assert found["spearman"] == pytest.approx(1.0)
    assert score(TASKS["stsb"], labels, np.ones(4)) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], np.array([0]), "2 labels but predictions of shape"),
        ([], np.array([]), "at least one label"),
        ([0, 1], np.array([[0.0, np.nan], [0.0, 1.0]]), "NaN or infinity"),
        ([0, 1], np.array([[0.0, 1.0, 2.0]] * 2), "expected 2 predictions per example, got 3"),
        ([0, 2], np.array([0, 1]), "labels hold 2, expected indices from 0 to 1"),
        ([0, 1], np.array([0, -1]), "predictions hold -1"),
        ([0, None], np.array([0, 1]), "labels are not numbers"),
        ([0, 1], np.array(["negative", "positive"]), "predictions are not numbers"),
    ],
)
def test_wrong_input(labels: list[int], predictions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(TASKS["sst2"], labels, predictions)
