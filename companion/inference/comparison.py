"""How far one predictor is from another, on texts that never change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from companion.data import load
from companion.inference.manifest import Check, Manifest, write_manifest
from companion.inference.predictor import OnnxPredictor, Predictor

__all__ = ["compare", "write_checked"]

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


def write_checked(manifest: Manifest, folder: Path, reference: Predictor) -> Manifest:
    """Write a folder's manifest, compare the folder with a reference, and write down what that found.

    Parameters
    ----------
    manifest : Manifest
        Complete but for its check.
    folder : Path
        Holds all other files.
    reference : Predictor
        As for `compare`.

    Returns
    -------
    Manifest
        As it is in the folder now.
    """
    write_manifest(manifest, folder)  # only a folder with a manifest opens
    manifest = replace(manifest, check=compare(reference, OnnxPredictor(folder, anyway=True)))
    write_manifest(manifest, folder)
    return manifest
