"""How far answers that follow each other resemble each other, and what that costs.

A client that sends its texts in a row makes neighbours alike. A test that takes every answer for a draw of
its own then finds drift where there is none. Cutting only between blocks of answers keeps what lies within a
block together; what reaches further, such as the rhythm of a day, no block keeps: the reference has to cover
it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from companion.deployment.watching.columns import Columns

__all__ = ["block_for", "design_effect", "series_of"]

Floats = NDArray[np.float64]

_FEWEST_BLOCKS = 40
_CAUTION = 4
"""The block is so many times as long as the longest stretch over which neighbours are seen to be alike."""

_SHUFFLES = 99
_LABELS = 20
_LOOKED_AT = 20_000


def series_of(columns: Columns) -> dict[str, Floats]:
    """Give what is watched, as one series of numbers each, in the order of time; of labels the commonest."""
    known = {name: values for name, values in columns.inputs.items() if np.isfinite(values).all()}
    counts = np.bincount(columns.chosen, minlength=len(columns.labels))
    shares = {
        f"label {columns.labels[place]}": (columns.chosen == place).astype(np.float64)
        for place in np.argsort(-counts, kind="stable")[: min(_LABELS, len(columns.labels))]
    }
    return known | {"score": columns.scores} | shares


def block_for(reference: Columns, *, seed: int = 0) -> int:
    """Choose how many answers in a row have to stay together.

    Means of neighbouring stretches of 1, 2, 4, 8, ... answers are correlated, for every measure. The longest
    stretch at which any correlation is larger than all that 99 random orders of the answers show, which has a
    chance of 1% where the order means nothing, counts four times.

    Parameters
    ----------
    reference : Columns
        Of more than 20,000 answers the newest are looked at.
    seed : int
        Draws the random orders.

    Returns
    -------
    int
        A power of two; 1 where neighbours have nothing to do with each other.
    """
    newest = reference.take(slice(max(0, len(reference) - _LOOKED_AT), None))
    lengths: list[int] = []
    while len(newest) >> len(lengths) >= _FEWEST_BLOCKS:
        lengths.append(1 << len(lengths))
    varied = [values for values in series_of(newest).values() if lengths and np.ptp(values) > 0]
    if not varied:
        return 1
    series = np.stack(varied)
    rng = np.random.default_rng(seed)
    limit = max(
        _largest_correlation(shuffled, length)
        for shuffled in (series[:, rng.permutation(len(newest))] for _ in range(_SHUFFLES))
        for length in lengths
    )
    alike = [length for length in lengths if _largest_correlation(series, length) > limit]
    return _CAUTION * max(alike) if alike else 1


def design_effect(values: Floats, block: int) -> float:
    """Say how many answers it takes for the worth of one independent answer, at least 1.

    Parameters
    ----------
    values : ndarray of float64, shape (answers,)
        In the order of time.
    block : int

    Returns
    -------
    float
        The variance of block means against what independence would make it [1]_.

    References
    ----------
    .. [1] Kish, "Survey Sampling", Wiley 1965, section 5.4.
    """
    variance = float(values.var())
    means = _block_means(values, block)
    if block == 1 or variance == 0 or len(means) < 2:
        return 1.0
    return max(1.0, block * float(means.var(ddof=1)) / variance)


def _block_means(values: Floats, length: int) -> Floats:
    """Average the latest whole blocks."""
    count = values.shape[-1] // length
    newest = values[..., values.shape[-1] - count * length :]
    means: Floats = newest.reshape(*values.shape[:-1], count, length).mean(axis=-1)
    return means


def _largest_correlation(series: Floats, length: int) -> float:
    """Correlate neighbouring block means of series, shape (series, answers); scale with their number."""
    means = _block_means(series, length)
    centred = means - means.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    together = (centred[:, 1:] * centred[:, :-1]).sum(axis=1)
    found = np.divide(together, spread, out=np.zeros_like(spread), where=spread > 0)
    return float(found.max()) * math.sqrt(means.shape[1])
