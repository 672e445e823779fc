"""Scores of a task, by scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from companion.data.tasks import Task

__all__ = ["score"]


def score(task: Task, labels: Sequence[int | float], predictions: np.ndarray[Any, Any]) -> dict[str, float]:
    """Score predictions against the true labels.

    Parameters
    ----------
    task : Task
    labels : sequence of int or float, length n
        True class indices, or true values for regression.
    predictions : numpy.ndarray
        Class indices or values, shape (n,); or logits or probabilities, shape (n, num_labels), of which the
        largest counts (for regression: shape (n, 1)).

    Returns
    -------
    dict of str to float
        `task.metric` first. Matthews and F1 (of label index 1) come with "accuracy", Pearson with
        "spearman". Correlations that are not defined, because one side is constant, are 0.

    Raises
    ------
    ValueError
        If lengths differ, nothing is given, or a prediction is not finite or no known label.
    """
    import numpy as np

    truth = np.asarray(labels)
    predicted = np.asarray(predictions)
    for name, values in (("labels", truth), ("predictions", predicted)):
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{name} are not numbers; expected class indices or values, none missing")
    if truth.ndim != 1 or len(truth) == 0:
        raise ValueError(f"expected at least one label in one dimension, got shape {truth.shape}")
    if predicted.ndim == 2 and predicted.shape[1] != task.num_labels:
        raise ValueError(f"expected {task.num_labels} predictions per example, got {predicted.shape[1]}")
    if not np.isfinite(predicted).all():
        raise ValueError("predictions hold NaN or infinity; check the model before scoring it")
    if predicted.ndim == 2:
        predicted = predicted[:, 0] if task.is_regression else predicted.argmax(axis=1)
    if predicted.shape != truth.shape:
        raise ValueError(f"{len(truth)} labels but predictions of shape {predicted.shape}; expected one each")
    return _correlations(truth, predicted) if task.is_regression else _classification(task, truth, predicted)


def _classification(
    task: Task, truth: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]
) -> dict[str, float]:
    import numpy as np
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    for name, values in (("labels", truth), ("predictions", predicted)):
        unknown = np.setdiff1d(values, np.arange(task.num_labels))
        if unknown.size:
            raise ValueError(f"{name} hold {unknown[0]!s}, expected indices from 0 to {task.num_labels - 1}")
    accuracy = {"accuracy": float(accuracy_score(truth, predicted))}
    if task.metric == "matthews":
        return {"matthews": float(matthews_corrcoef(truth, predicted)), **accuracy}
    if task.metric == "f1":
        return {"f1": float(f1_score(truth, predicted, pos_label=1, zero_division=0.0)), **accuracy}
    return accuracy


def _correlations(truth: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]) -> dict[str, float]:
    import numpy as np
    from scipy.stats import pearsonr, spearmanr

    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(predicted) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(truth, predicted).statistic),
        "spearman": float(spearmanr(truth, predicted).statistic),
    }
