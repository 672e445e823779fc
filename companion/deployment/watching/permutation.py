"""One test of many measures at once whose false alarms are as rare as it says.

Were the window drawn like the reference, every way to cut the pool of both into two would have been as
likely as the one that was seen. So the real cut is compared with random ones. For each cut each measure's
distance becomes a surprise, minus the logarithm of an approximate probability, and the largest surprise over
all measures is what is compared: one threshold for all of them, however they depend on each other
(the step of Westfall and Young [1]_).

The approximation, a gamma distribution with mean and variance of further random cuts, only makes the measures
comparable. The rate of false alarms does not rest on it: real and random cuts go through the same function,
and under no drift the real one is any of them.

References
----------
.. [1] Westfall and Young, "Resampling-Based Multiple Testing", Wiley 1993, section 2.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from companion.deployment.watching.measures import Measure, statistic

__all__ = ["Cuts", "adjusted", "cuts_for"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SCALING = 249
"""Further cuts, to make the measures comparable."""

_AT_ONCE = 1 << 21
"""Answers of random windows that are looked at together: 16 MiB a column."""

_UNHEARD_OF = 1e6
"""The surprise at what never varies in other cuts: more than any probability that a float can hold."""

_SLACK = 1e-9
"""Two sums of the same numbers in another order may differ by so much."""


@dataclass(frozen=True)
class Cuts:
    """Random ways to cut a pool into a reference and a window.

    Attributes
    ----------
    reference, window : int
        Answers on either side.
    block : int
        So many answers in a row stay together; divides both.
    compared : int
        Cuts that the real one is compared with; `_SCALING` more serve as scale.
    chosen : ndarray of int32, shape (cuts, window / block)
        Blocks of the window, in each cut.
    """

    reference: int
    window: int
    block: int
    compared: int
    chosen: NDArray[np.int32]

    def members(self) -> Iterator[Ints]:
        """Give the places of the window's answers, some cuts at a time; the real cut is the first."""
        real = np.arange(self.reference, self.reference + self.window)[None]
        yield real.astype(np.int64)
        step = max(1, _AT_ONCE // self.window)
        within = np.arange(self.block)
        for start in range(0, len(self.chosen), step):
            blocks = self.chosen[start : start + step].astype(np.int64)
            yield (blocks[:, :, None] * self.block + within).reshape(len(blocks), self.window)


def cuts_for(
    reference: int,
    window: int,
    *,
    block: int,
    false_alarms: float,
    seed: int,
    permutations: int | None = None,
) -> Cuts:
    """Draw cuts. Windows of the same size against references of the same size can share them.

    Parameters
    ----------
    reference, window : int
        Multiples of `block`.
    block : int
    false_alarms : float
        The rate: the rarer, the more cuts there have to be.
    seed : int
    permutations : int, optional
        Cuts to compare with. Default: 999, and ten times as many as one false alarm takes.

    Returns
    -------
    Cuts

    Raises
    ------
    ValueError
        When so few cuts could never give an alarm.
    """
    compared = permutations or max(999, math.ceil(10 / false_alarms) - 1)
    if (compared + 1) * false_alarms < 1 - _SLACK:
        raise ValueError(
            f"{compared} permutations cannot show what happens in {false_alarms:g} of all windows, expected "
            f"at least {math.ceil(1 / false_alarms) - 1}"
        )
    rng = np.random.default_rng(seed)
    blocks, inside = (reference + window) // block, window // block
    chosen = np.empty((compared + _SCALING, inside), dtype=np.int32)
    for row in chosen:
        row[:] = rng.choice(blocks, inside, replace=False, shuffle=False)
    return Cuts(reference, window, block, compared, chosen)


def adjusted(measures: Sequence[Measure], cuts: Cuts) -> Floats:
    """Test all measures together.

    Parameters
    ----------
    measures : sequence of Measure
        At least one, each of a pool of ``cuts.reference + cuts.window`` answers.
    cuts : Cuts

    Returns
    -------
    ndarray of float64, shape (measures,)
        The adjusted p-value of each. Whatever `a`: without drift the smallest is at most `a` in at most a
        share `a` of all windows.
    """
    from scipy.special import gammaincc

    distances = np.concatenate(
        [np.stack([statistic(one, members) for one in measures], axis=1) for members in cuts.members()]
    )
    tested, scale = distances[: 1 + cuts.compared], distances[1 + cuts.compared :]
    mean, variance = scale.mean(axis=0), scale.var(axis=0)
    varied = variance > 0
    surprise = np.where(tested > mean + _SLACK, _UNHEARD_OF, 0.0)  # the same in every other cut
    shape, unit = mean[varied] ** 2 / variance[varied], variance[varied] / mean[varied]
    tail = gammaincc(shape, tested[:, varied] / unit)
    surprise[:, varied] = -np.log(np.maximum(tail, np.finfo(np.float64).tiny))
    largest = surprise.max(axis=1)
    real = surprise[0]
    p: Floats = (largest[:, None] >= real - _SLACK * np.abs(real)).mean(axis=0)
    return p
