"""What makes an answer an answer, and how far two answers to one question are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from companion.deployment.answering import Answer

__all__ = ["Agreement", "Difference", "difference", "fault", "wilson"]

_SUM = 1e-3
"""How far probabilities may miss 1: their sum in float32, over as many labels as anyone has."""


@dataclass(frozen=True)
class Difference:
    """Two answers to one question.

    Attributes
    ----------
    same_label : bool
        Whether the most probable label is the same; always true for a regression.
    largest : float
        Largest absolute difference of two probabilities of one label, or of the two scores.
    """

    same_label: bool
    largest: float


def fault(answer: Answer, labels: tuple[str, ...]) -> str | None:
    """Say what is wrong with an answer, or None.

    Parameters
    ----------
    answer : Answer
    labels : tuple of str
        Those of the version that gave it; empty for a regression.

    Returns
    -------
    str or None
    """
    expected = len(labels) or 1
    if answer.labels != labels:
        found, wanted = (", ".join(names) or "none" for names in (answer.labels, labels))
        return f"it has the labels {found}, expected {wanted}"
    if len(answer.values) != expected:
        return f"it has {len(answer.values)} values, expected {expected}"
    if not all(map(math.isfinite, answer.values)):
        return f"it has the values {answer.values}, expected finite numbers"
    if labels and (min(answer.values) < 0 or abs(math.fsum(answer.values) - 1) > _SUM):
        return f"it has the values {answer.values}, expected probabilities that sum to 1"
    return None


def difference(one: Answer, other: Answer) -> Difference:
    """Compare two answers; labels are matched by name, so that their order does not count.

    Parameters
    ----------
    one, other : Answer
        Both without a `fault`, with the same set of labels.

    Returns
    -------
    Difference
    """
    if not one.labels:
        return Difference(same_label=True, largest=abs(one.values[0] - other.values[0]))
    first = dict(zip(one.labels, one.values, strict=True))
    second = dict(zip(other.labels, other.values, strict=True))
    return Difference(
        same_label=max(first, key=first.__getitem__) == max(second, key=second.__getitem__),
        largest=max(abs(first[label] - second[label]) for label in first),
    )


class Agreement:
    """Counts of compared answers, in constant memory.

    Parameters
    ----------
    tolerance : float
        Largest difference of two probabilities, or scores, at which two answers of one label agree.
    """

    def __init__(self, tolerance: float) -> None:
        if not tolerance > 0:
            raise ValueError(f"the tolerated difference is {tolerance}, expected above 0 such as 0.5.")
        self.tolerance = tolerance
        self.compared = 0
        self.agreed = 0
        self.same_label = 0
        self.largest = 0.0
        self._total = 0.0

    def add(self, found: Difference) -> bool:
        """Count one comparison; return whether the two agree."""
        agree = found.same_label and found.largest <= self.tolerance
        self.compared += 1
        self.agreed += agree
        self.same_label += found.same_label
        self.largest = max(self.largest, found.largest)
        self._total += found.largest
        return agree

    @property
    def mean(self) -> float:
        """Mean of the largest differences; 0 without any."""
        return self._total / self.compared if self.compared else 0.0


def wilson(count: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """Give Wilson's interval for a share [1]_: closed form, and good for shares near 0 and 1.

    `companion.inference.intervals.proportion` is exact and needs scipy, which a server does not load.

    Parameters
    ----------
    count, total : int
        So many of so many, at least one.
    level : float
        Nominal coverage.

    Returns
    -------
    tuple of float
        Its two ends.

    References
    ----------
    .. [1] Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
       American Statistical Association 22, 1927.
    """
    if total < 1 or not 0 <= count <= total:
        raise ValueError(f"found {count} of {total}, expected a count from 0 up to a total of at least 1.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, weight = count / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / total / 4) / (1 + weight)
    return max(0.0, middle - half) if count else 0.0, min(1.0, middle + half) if count < total else 1.0
