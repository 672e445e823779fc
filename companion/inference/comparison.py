"""How far one predictor is from another, on texts that never change."""

from __future__ import annotations

import numpy as np

from companion.data import load
from companion.inference.manifest import Check
from companion.inference.predictor import Predictor

__all__ = ["compare"]

_SAMPLE = 128


def compare(reference: Predictor, other: Predictor) -> Check:
    """Run two predictors on the same generated texts.

    Parameters
    ----------
    reference : Predictor
        What is right by definition: the source of an export.
    other : Predictor
        With the same labels. Run once text by text and once in batches of 32.

    Returns
    -------
    Check
    """
    texts = [example.text for example in load("sentiment").dev[:_SAMPLE]]
    expected, alone = reference.logits(texts), other.logits(texts, batch_size=1)
    batched = other.logits(texts, batch_size=32)
    difference = np.abs(batched - expected)
    flips = 0 if reference.is_regression else int((batched.argmax(1) != expected.argmax(1)).sum())
    moved = int((alone != batched).any(axis=1).sum())
    return Check(len(texts), float(difference.max()), float(difference.mean()), flips, moved)
