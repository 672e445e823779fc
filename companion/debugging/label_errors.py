"""Labels that are probably wrong: which ones to look at first, and how many there may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.data import Example

__all__ = [
    "LabelCandidate",
    "NoiseRate",
    "label_errors",
    "linear_classifier",
    "noise_rate",
    "out_of_fold",
    "word_features",
]

Floats = NDArray[np.float64]
_SHAPE, _SHAPE_SPREAD = 1.1, 0.12
"""Where the exponent of the margin is looked for, and how far around; from a log-normal prior."""
_WORDS = r"(?u)\b\w+\b"


@dataclass(frozen=True)
class LabelCandidate:
    """An example whose label deserves a look. Of such candidates, people confirm about half [1]_.

    Attributes
    ----------
    index : int
        Position among the examples.
    given, suggested : int
        The label that is there, and the likeliest one.
    given_probability, suggested_probability : float
        By a model that has not seen the example.

    References
    ----------
    .. [1] Northcutt, Athalye and Mueller, "Pervasive Label Errors in Test Sets Destabilize Machine Learning
       Benchmarks", NeurIPS 2021.
    """

    index: int
    given: int
    suggested: int
    given_probability: float
    suggested_probability: float


@dataclass(frozen=True)
class NoiseRate:
    """Share of wrong labels: the likeliest, and the bounds that the data allow.

    Attributes
    ----------
    rate, low, high : float
        `low` is a one-sided 99.5% bound, `high` a 97.5% one.
    """

    rate: float
    low: float
    high: float


def word_features(texts: Sequence[str], others: Sequence[str] = ()) -> tuple[Any, Any]:
    """Return TF-IDF of words and neighbouring pairs: sparse (texts, features), and the same for `others`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=_WORDS)
    fitted = vectorizer.fit_transform(texts)
    return fitted, vectorizer.transform(others) if others else None


def linear_classifier(classes: int) -> Any:
    """Return the linear model of words that the data checks use."""
    from sklearn.linear_model import LogisticRegression

    solver = "liblinear" if classes == 2 else "lbfgs"  # the first is faster, and knows two classes alone
    return LogisticRegression(C=10.0, max_iter=300, solver=solver, random_state=0)


def out_of_fold(texts: Sequence[str], labels: Sequence[int], *, folds: int = 5, seed: int = 0) -> Floats:
    """Return probabilities (texts, classes), each by a linear model of words that has not seen the text.

    Raises
    ------
    ValueError
        When labels are not 0, 1, ..., each at least `folds` times.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    found, counts = np.unique(np.asarray(labels), return_counts=True)
    if len(found) < 2 or list(found) != list(range(len(found))) or counts.min() < folds:
        raise ValueError(
            f"labels {found[:8].tolist()} occur {counts[:8].tolist()} times, "
            f"expected two or more classes numbered from 0 without a gap, each at least {folds} times"
        )
    features, _ = word_features(texts)
    probabilities: Floats = cross_val_predict(
        linear_classifier(len(found)),
        features,
        np.asarray(labels),
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
        method="predict_proba",
    )
    return probabilities


def label_errors(
    examples: Sequence[Example | str],
    labels: Sequence[int] | None = None,
    *,
    probabilities: Floats | None = None,
    folds: int = 5,
    seed: int = 0,
) -> list[LabelCandidate]:
    """Rank the examples whose label is probably wrong, by confident learning [1]_ as cleanlab does it.

    Look at them; do not delete them unseen. Where the model is weak, it flags what it does not understand.

    Parameters
    ----------
    examples : sequence of Example or str
    labels : sequence of int, optional
        Classes from 0; by default the examples' own.
    probabilities : ndarray, optional
        (examples, classes), each by a model that has not seen the example: those of a fine-tuned
        transformer find more than the default, which is a linear model of words.
    folds, seed : int
        For the default.

    Returns
    -------
    list of LabelCandidate
        The least probable labels first.

    Raises
    ------
    ValueError
        When an example has no label, or numbers do not match.

    References
    ----------
    .. [1] Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
       JAIR 2021.
    """
    from cleanlab.filter import find_label_issues

    texts = [_text(example) for example in examples]
    given = _given(examples) if labels is None else list(labels)
    if len(given) != len(texts):
        raise ValueError(f"{len(given)} labels for {len(texts)} examples, expected one for each")
    if probabilities is None:
        probabilities = out_of_fold(texts, given, folds=folds, seed=seed)
    if len(probabilities) != len(texts):
        raise ValueError(f"{len(probabilities)} rows of probabilities for {len(texts)} examples")
    flagged = find_label_issues(
        np.asarray(given), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    return [_candidate(int(index), given, probabilities) for index in flagged]


def _candidate(index: int, given: Sequence[int], probabilities: Floats) -> LabelCandidate:
    row = probabilities[index]
    label, suggested = int(given[index]), int(row.argmax())
    return LabelCandidate(index, label, suggested, float(row[label]), float(row[suggested]))


def _text(example: Example | str) -> str:
    if isinstance(example, str):
        return example
    return example.text if example.pair is None else f"{example.text} {example.pair}"


def _given(examples: Sequence[Example | str]) -> list[int]:
    labels = [None if isinstance(example, str) else example.label for example in examples]
    if None in labels:
        raise ValueError(f"example {labels.index(None)} has no label: give labels, or examples with labels")
    return [int(label) for label in labels if label is not None]


def noise_rate(labels: Sequence[int], probabilities: Floats) -> NoiseRate:
    """Estimate the share of wrong labels from how often confident predictions are contradicted.

    A hard text and a wrong label both contradict a model. But with the model's margin m, the errors on hard
    texts vanish, and those by wrong labels stay: the share of contradictions is

        rate + (1 - rate * classes / (classes - 1)) * sigmoid(-a * m ** b),

    the psychometric function with a lapse rate [1]_. `a` is free, `b` near 1; the bounds are those of the
    profile likelihood. Where no margin is large the bounds are far apart. They hold as far as the curve does:
    a model that is wrong about a whole kind of text bends it, and the estimate is then off either way.

    Parameters
    ----------
    labels : sequence of int
    probabilities : ndarray
        (examples, classes), out of fold.

    Returns
    -------
    NoiseRate

    References
    ----------
    .. [1] Wichmann and Hill, "The psychometric function: I", Perception & Psychophysics 2001.
    """
    ranked = np.sort(probabilities, axis=1)
    margins = np.log(np.clip(ranked[:, -1], 1e-9, 1) / np.clip(ranked[:, -2], 1e-9, 1))
    wrong = probabilities.argmax(axis=1) != np.asarray(labels)
    bins = np.array_split(np.argsort(margins), min(100, len(margins)))
    centre = np.array([margins[part].mean() for part in bins]) + 1e-6
    errors = np.array([wrong[part].sum() for part in bins], dtype=float)
    sizes = np.array([len(part) for part in bins], dtype=float)

    rates = np.linspace(0.0, 0.4, 41)
    classes = probabilities.shape[1]
    profile = np.array([_best_fit(rate, classes, centre, errors, sizes) for rate in rates])
    worse = 2 * (profile.max() - profile)
    above, below = rates[worse <= 6.63], rates[worse <= 3.84]
    return NoiseRate(float(rates[worse.argmin()]), float(above.min()), float(below.max()))


def _best_fit(rate: float, classes: int, centre: Floats, errors: Floats, sizes: Floats) -> float:
    """Return the best log-likelihood with this share of wrong labels, over all slopes and shapes."""
    slopes = np.geomspace(0.02, 20, 60)[:, None, None]
    shapes = np.linspace(0.75, 1.55, 9)[None, :, None]
    contradicted = 1 / (1 + np.exp(np.minimum(slopes * centre**shapes, 50)))
    chance = np.clip(rate + (1 - rate * classes / (classes - 1)) * contradicted, 1e-9, 1 - 1e-9)
    likelihood = (errors * np.log(chance) + (sizes - errors) * np.log(1 - chance)).sum(axis=-1)
    # Without a leaning to 1, a crooked shape explains any plateau.
    likelihood -= (np.log(shapes[..., 0] / _SHAPE) / _SHAPE_SPREAD) ** 2 / 2
    return float(likelihood.max())
