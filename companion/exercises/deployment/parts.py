"""The steps ``padding`` and ``probabilities``: two functions in which the naive server is wrong."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from companion.exercises.exercise import Step
from companion.exercises.probing import Failed, Probe

__all__ = ["padding_step", "probabilities_step"]

_CLOSE = 1e-5


def padding_step() -> Step:
    """Return the step in which tokens become a batch."""
    return Step(
        name="padding",
        title="Pad texts, and say what is padding",
        task="Write pad(rows, pad_id): a list of lists of token ids in, two integer arrays of shape "
        "(texts, longest text) out: the ids, filled with pad_id behind short texts, and the attention mask.",
        hints=(
            "What does the model see behind the end of a short text, and how would it know?",
            "np.full makes an array of one number, np.zeros one of zeros; fill both row by row.",
            "ids[row, :len(tokens)] = tokens and mask[row, :len(tokens)] = 1, for each row.",
        ),
        examine=_examine_padding,
    )


def probabilities_step() -> Step:
    """Return the step in which logits become probabilities."""
    return Step(
        name="probabilities",
        title="Turn logits into probabilities",
        task="Write probabilities(logits): an array of shape (texts, labels) in, one of the same shape out, "
        "in which each row is the softmax of that row.",
        hints=(
            "Which two things are true of probabilities, and not of logits?",
            "The exponential of each number, over the sum of the row. What is the exponential of 1,000?",
            "Subtract the largest number of each row first, with axis=1 and keepdims=True.",
        ),
        examine=_examine_probabilities,
    )


def _examine_padding(work: Any, probe: Probe) -> str:
    rng = random.Random(probe.seed)
    for count in (1, 2, 5):
        rows = [[rng.randrange(5, 999) for _ in range(rng.randint(1, 12))] for _ in range(count)]
        # A model's padding token has any number, and may stand in a text as well.
        pad_id = rng.choice((0, 1, rows[0][0]))
        longest = max(map(len, rows))
        given = [list(row) for row in rows]
        found = probe.call(work, given, pad_id, what=f"pad {count} texts, with the padding token {pad_id}")
        if given != rows:
            raise Failed("it changes the lists that it is given: work on copies")
        ids, mask = _pair(found)
        shape = (count, longest)
        for name, array in (("ids", ids), ("mask", mask)):
            probe.require(
                array.shape == shape,
                f"shape of the {name}",
                shape,
                array.shape,
                f"the {name} have another shape",
            )
            probe.require(
                array.dtype.kind in "iu", f"kind of the {name}", "integers", array.dtype, "not whole numbers"
            )
        right_ids = np.array([row + [pad_id] * (longest - len(row)) for row in rows])
        right_mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        probe.require(
            bool((ids == right_ids).all()), "ids", right_ids.tolist(), ids.tolist(), "other ids than expected"
        )
        if (mask == 1).all() and not (right_mask == 1).all():
            probe.fail("mask", right_mask.tolist(), mask.tolist(), "the mask says that padding is text")
        same = bool((mask == right_mask).all())
        why = "the mask does not tell text from padding: count the tokens, do not look for the padding token"
        probe.require(same, "mask", right_mask.tolist(), mask.tolist(), why)
    return "every text has its tokens, and the mask says where they end."


def _pair(found: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise Failed(f"it returned a {type(found).__name__}, expected two arrays: ids and mask")
    ids, mask = (np.asarray(one) for one in found)
    return ids, mask


def _examine_probabilities(work: Any, probe: Probe) -> str:
    rng = np.random.default_rng(probe.seed)
    for scale, labels, what in (
        (1.0, 2, "two labels"),
        (3.0, 5, "five"),
        (1_000.0, 3, "logits of a thousand"),
    ):
        logits = rng.normal(scale=scale, size=(4, labels)).astype(np.float32)
        kept = logits.copy()
        found = np.asarray(probe.call(work, logits, what=what))
        if (logits != kept).any():
            raise Failed("it changes the array that it is given: work on a copy")
        probe.require(found.shape == logits.shape, "shape", logits.shape, found.shape, "it has another shape")
        if found.dtype.kind != "f" or not np.isfinite(found).all():
            why = "not all are numbers: the exponential of a large logit is infinite, so subtract the largest"
            probe.fail(what, "finite numbers", str(found.tolist())[:120], why)
        exact = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        right = exact / exact.sum(axis=1, keepdims=True)
        if not np.allclose(found, right, atol=_CLOSE):
            sums = np.asarray(found.sum(axis=1)).round(3).tolist()
            why = _why(found, logits)
            probe.fail(what, right.round(3).tolist(), f"{found.round(3).tolist()}, with sums {sums}", why)
    return "each row is the softmax of its logits."


def _why(found: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> str:
    """Name a mistake that is known."""
    if np.allclose(found, logits):
        return "these are the logits: scores without a unit, that sum to nothing"
    columns = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    if np.allclose(found, columns / columns.sum(axis=0), atol=_CLOSE):
        return "each column sums to 1 instead of each row: sum over the labels, axis=1"
    if np.allclose(found, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=_CLOSE):
        return "that is the sigmoid of each logit: it does not compare the labels"
    return "the rows are not the softmax of the logits"
