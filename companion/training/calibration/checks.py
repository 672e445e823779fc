"""What probabilities, logits and labels have to be, and what to say when they are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Floats", "Ints", "check_resamples", "checked", "class_indices", "matrix", "top"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Rows that a model computed in half precision sum to 1 only this closely.
_ROW_SUM_TOLERANCE = 2e-3


def checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    """Return probabilities and labels as arrays, or say what is wrong with them."""
    rows = matrix(probabilities, "probabilities")
    if rows.min() < 0:
        row = int((rows < 0).any(axis=1).argmax())
        raise ValueError(
            f"probabilities of row {row} hold {rows[row].min():.4g}: pass the logits through softmax"
        )
    off = np.abs(rows.sum(axis=1) - 1)
    if off.max() > _ROW_SUM_TOLERANCE:
        row = int(off.argmax())
        raise ValueError(
            f"probabilities of row {row} sum to {rows[row].sum():.4g}, expected 1: "
            "pass the logits through softmax"
        )
    return rows, class_indices(labels, rows)


def matrix(values: ArrayLike, name: str) -> Floats:
    """Return a finite matrix of at least one row and two columns, or say what is wrong with it."""
    matrix = np.asarray(values)
    if matrix.dtype.kind not in "fiu":
        raise ValueError(f"{name} are of type {matrix.dtype}, expected numbers")
    if matrix.ndim != 2 or matrix.shape[0] == 0 or matrix.shape[1] < 2:
        raise ValueError(
            f"{name} have shape {matrix.shape}, expected (n, classes) with at least one row and two classes; "
            "of a binary model give both columns"
        )
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        row = int((~np.isfinite(matrix)).any(axis=1).argmax())
        raise ValueError(f"{name} of row {row} hold NaN or infinity: check the model")
    return matrix


def class_indices(labels: ArrayLike, rows: Floats) -> Ints:
    """Return labels as class indices that fit `rows`, or say what is wrong with them."""
    truth = np.asarray(labels)
    if truth.shape != rows.shape[:1]:
        raise ValueError(f"labels have shape {truth.shape}, expected ({len(rows)},): one for each row")
    if truth.dtype.kind not in "iu":
        raise ValueError(f"labels are of type {truth.dtype}, expected whole numbers: class indices")
    bad = (truth < 0) | (truth >= rows.shape[1])
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(f"label {truth[place]} of row {place} found, expected 0 to {rows.shape[1] - 1}")
    return truth.astype(np.int64)


def check_resamples(resamples: int) -> None:
    """Refuse a number of draws that gives no distribution."""
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}, expected at least 2; 1000 is usual")


def top(rows: Floats, truth: Ints) -> tuple[Floats, Floats]:
    """Return the confidence of each row, and 1.0 where its prediction is right; both of shape (n,)."""
    # A float32 softmax can exceed 1 by a rounding error.
    return np.minimum(rows.max(axis=1), 1.0), (rows.argmax(axis=1) == truth).astype(np.float64)
