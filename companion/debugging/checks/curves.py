"""Robust numbers about a run's curves: medians and what they are worth, outliers, what guessing would give.

A loss curve is noise with a trend in it. Medians ignore single bad batches, and every comparison here comes
with the standard error of what is compared: a check that cannot tell a trend from noise must say so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from companion.debugging.checks.registry import NotApplicable
from companion.debugging.subject import Subject
from companion.training.monitoring.health import Thresholds, loss_spike
from companion.training.records import StepRecord

__all__ = ["FEW", "Curve", "constant_guess", "curve_of", "entropy_of", "spikes", "step_seconds"]

FEW = 20
"""Steps below which a curve says nothing."""

_MAD_TO_DEVIATION = 1.4826
_MEDIAN_TO_MEAN = 1.2533
"""Standard error of a median over that of a mean, for normal noise: the square root of half of pi."""


@dataclass(frozen=True)
class Curve:
    """A series of losses, cut into parts of equal length.

    Attributes
    ----------
    levels : tuple of float
        The median of each part, in order.
    noise : float
        Robust standard deviation of single losses around their part's median.
    error : float
        Standard error of a level.
    steps : tuple of int
        The first step of each part.
    """

    levels: tuple[float, ...]
    noise: float
    error: float
    steps: tuple[int, ...]

    @property
    def start(self) -> float:
        """The level of the first part."""
        return self.levels[0]

    @property
    def end(self) -> float:
        """The level of the last part."""
        return self.levels[-1]

    @property
    def lowest(self) -> int:
        """The index of the lowest part."""
        return min(range(len(self.levels)), key=lambda index: self.levels[index])


def curve_of(records: Sequence[StepRecord], *, at_least: int = FEW) -> Curve:
    """Summarise the finite losses of a run, in tenths; of fewer than 50 steps in fifths.

    Raises
    ------
    NotApplicable
        When there are fewer than `at_least`.
    """
    finite = [record for record in records if math.isfinite(record.loss)]
    if len(finite) < at_least:
        raise NotApplicable(f"{len(finite)} steps with a finite loss are too few to see a trend in noise")
    parts = np.array_split(np.arange(len(finite)), 10 if len(finite) >= 50 else 5)
    losses = np.array([record.loss for record in finite])
    levels = [float(np.median(losses[part])) for part in parts]
    residuals = np.concatenate([losses[part] - level for part, level in zip(parts, levels, strict=True)])
    # From neighbours, noise is free of the trend; from the part's median, of what neighbours share.
    noise = max(_deviation(residuals), _deviation(np.diff(losses)) / math.sqrt(2))
    error = _MEDIAN_TO_MEAN * noise / math.sqrt(min(len(part) for part in parts))
    return Curve(tuple(levels), noise, error, tuple(finite[part[0]].step for part in parts))


def spikes(records: Sequence[StepRecord], thresholds: Thresholds | None = None) -> list[StepRecord]:
    """Find losses that stand out of those before them, as a monitor does during the run.

    Returns
    -------
    list of StepRecord
        In order. Of a spike that lasts for several steps, the first one.
    """
    limits = thresholds or Thresholds()
    found: list[StepRecord] = []
    for index in range(limits.history, len(records)):
        # What a monitor looks at: the beginning of the run, and the window before the step.
        start = max(limits.history, index - limits.window)
        seen = [*records[: limits.history], *records[start : index + 1]]
        record = records[index]
        new = not found or record.step > found[-1].step + limits.history // 2
        if (
            new
            and math.isfinite(record.loss)
            and loss_spike(seen, limits)
            and _sudden(records, index, limits)
        ):
            found.append(record)
    return found


def _sudden(records: Sequence[StepRecord], index: int, limits: Thresholds) -> bool:
    """Whether a loss is also far from those before it in proportion, and not small beside the first ones.

    Losses of small batches vary by factors: their logarithms are nearer to normal noise than they are.
    """
    window = records[max(0, index - limits.window) : index]
    losses = [record.loss for record in window if math.isfinite(record.loss) and record.loss > 0]
    if len(losses) < limits.history:
        return True
    logarithms = np.log(losses)
    distance = math.log(records[index].loss) - float(np.median(logarithms))
    begun = float(np.median([record.loss for record in records[:5]]))
    far = distance > limits.spike_score * _deviation(logarithms)
    return far and records[index].loss > limits.spike_share * begun


def step_seconds(records: Sequence[StepRecord]) -> list[float]:
    """Recover how long each step took, in units of one step's examples.

    A record holds the mean throughput since the start; with batches of one size their differences are the
    seconds of single steps. The first step is left out: a start is slow on any machine.
    """
    elapsed = [number / record.examples_per_second for number, record in enumerate(records, start=1)]
    return [later - earlier for earlier, later in pairwise(elapsed)]


def constant_guess(subject: Subject) -> float | None:
    """Return the loss, in nats, of always giving the same probabilities: those of the labels or words.

    Returns
    -------
    float or None
        None where this is not known: of a regression its scale is not, and an encoder has no loss.
    """
    if subject.kind == "classification":
        labels: list[int | float | None] = [example.label for example in subject.splits.get("train", ())]
        if not labels or any(label is None for label in labels):
            labels = list(_flat(subject, "labels"))
        classes = max(subject.classes, 2)
        return entropy_of(labels) if len(labels) >= 50 else math.log(classes)
    if subject.by_token and subject.kind != "encoder":
        words = [word for word in _flat(subject, "input_ids") if word != subject.pad_token_id]
        return entropy_of(words) if len(words) >= 500 else math.log(subject.vocab_size)
    return None


def _flat(subject: Subject, name: str) -> list[int]:
    tensors = [batch[name] for batch in subject.batches if name in batch]
    return [int(value) for tensor in tensors for value in tensor.flatten().tolist()]


def entropy_of(values: Iterable[object]) -> float:
    """Estimate an entropy from a sample, with the correction of Miller (1955) for its size."""
    counts = np.array(list(Counter(values).values()), dtype=float)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() + (len(counts) - 1) / (2 * counts.sum()))


def _deviation(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return _MAD_TO_DEVIATION * float(np.median(np.abs(values - np.median(values))))
