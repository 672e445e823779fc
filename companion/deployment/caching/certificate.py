"""The threshold of a semantic cache: found on labelled trials, or not found and then the cache stays off.

Of all questions that a similarity lets through, how many get a wrong answer? Two shares are bounded. Of the
hits in ordinary traffic, the share that is false; and of the questions that say the opposite of a stored one,
the share that is let through, since each of those hits is false and ordinary traffic may hold few of them.

To take the loosest threshold whose bound is within the budget would be to take the luckiest of many. Here the
thresholds are tested in an order fixed before any label is looked at, from strict to loose, and the walk ends
at the first that fails: then all that passed hold together at the stated confidence, by fixed-sequence
testing [1]_. A first threshold with few hits can fail by chance alone, so there are several starting points,
which share the error probability.

References
----------
.. [1] Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test: Calibrating Predictive Algorithms to
   Achieve Risk Control", 2021.
.. [2] Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
   binomial", Biometrika 26, 1934.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.inference.intervals import check_level, proportion

__all__ = ["TRAFFIC", "Bounded", "Certificate", "HitBudget", "Trial", "certify"]

TRAFFIC = "traffic"
"""The kind of a trial that is a question like those that will be asked."""

_STARTS = 4
_STEP = 1.1
"""Each threshold that is tested lets through a tenth more hits than the one before."""


@dataclass(frozen=True)
class Trial:
    """One question put to a cache whose answer is known to be right or wrong.

    Attributes
    ----------
    similarity : float
        To the nearest text in the cache.
    right : bool
        Whether that text's answer is right for the question.
    kind : str
        `TRAFFIC`, or the kind of opposite that it is.
    """

    similarity: float
    right: bool
    kind: str = TRAFFIC


@dataclass(frozen=True)
class HitBudget:
    """How often a semantic cache may be wrong.

    Attributes
    ----------
    false_hits : float
        The share of its hits whose answer is wrong, at most.
    opposites : float or None
        The share of questions with the opposite meaning of a stored one, and another answer, that get the
        stored answer, at most. None: opposites do not come, and are not asked for.
    level : float
        Confidence that both hold.

    Raises
    ------
    ValueError
        When a share or the level is not between 0 and 1.
    """

    false_hits: float = 0.01
    opposites: float | None = 0.01
    level: float = 0.95

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        check_level(self.level)
        for name in ("false_hits", "opposites"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(
                    f"HitBudget: {name} is {share}, expected a share between 0 and 1 such as 0.01"
                )


@dataclass(frozen=True)
class Bounded:
    """A count of wrong answers, and how large their share can be.

    Attributes
    ----------
    count, total : int
        So many of so many.
    bound : float
        The upper confidence bound of Clopper and Pearson, at the level of the walk that found it.
    """

    count: int
    total: int
    bound: float

    def text(self) -> str:
        """Such as ``"2 of 900 (at most 0.81%)"``."""
        return f"{self.count} of {self.total} (at most {self.bound:.2%})"


@dataclass(frozen=True)
class Certificate:
    """What was found out about a semantic cache before it may answer.

    Attributes
    ----------
    threshold : float or None
        The similarity from which on a stored answer is given. None: never.
    reason : str
        Why there is no threshold; empty where there is one.
    budget : HitBudget
    trials : int
        Questions like those that will be asked.
    false_hits : Bounded or None
        Of the hits among these; None without a threshold.
    opposites : Bounded or None
        Of the opposites with another answer, those let through; None without a threshold, or not asked for.
    embedder : str
        Which vectors it holds for.
    model_version : str
        Which model's answers it holds for.
    """

    threshold: float | None
    reason: str
    budget: HitBudget
    trials: int
    false_hits: Bounded | None
    opposites: Bounded | None
    embedder: str
    model_version: str

    @property
    def hit_share(self) -> float:
        """The share of the trials that hit: what to expect of traffic like it."""
        return self.false_hits.total / self.trials if self.false_hits and self.trials else 0.0

    def text(self) -> str:
        """Say in a line or two what was found."""
        if self.threshold is None or self.false_hits is None:
            return f"off: {self.reason}"
        opposites = "" if self.opposites is None else f"; opposites let through: {self.opposites.text()}"
        return (
            f"hits from a similarity of {self.threshold:.4f}, {self.hit_share:.1%} of {self.trials} "
            f"questions; false: {self.false_hits.text()}{opposites}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the attributes by their names."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Certificate:
        """Read what `to_dict` returned.

        Raises
        ------
        ValueError
            When it is something else.
        """
        try:
            parts = {
                name: None if fields[name] is None else Bounded(**fields[name])
                for name in ("false_hits", "opposites")
            }
            found = cls(**{**fields, "budget": HitBudget(**fields["budget"]), **parts})
            plausible = found.threshold is None or 0 < found.threshold <= 1
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a certificate: {error}. Calibrate the cache again.") from None
        if not plausible:
            raise ValueError(
                f"a certificate has the threshold {found.threshold}, expected one above 0 and up to 1. "
                "Calibrate the cache again."
            )
        return found


def certify(
    trials: Sequence[Trial], budget: HitBudget | None = None, *, embedder: str, model_version: str
) -> Certificate:
    """Find the loosest similarity that keeps a budget with confidence, or say that there is none.

    Parameters
    ----------
    trials : sequence of Trial
        Independent of each other: different questions, put to the same stored texts. See
        `companion.deployment.caching.replay`.
    budget : HitBudget, optional
    embedder, model_version : str
        What the trials were made with; the cache refuses to work with others.

    Returns
    -------
    Certificate
    """
    budget = budget or HitBudget()
    ordinary, opposite = _split(trials)
    walk = _Walk(ordinary, opposite, budget)
    reason = walk.reason
    found = None if reason else walk.loosest()
    if found is None:
        reason = reason or walk.refusal()
        return Certificate(None, reason, budget, len(ordinary), None, None, embedder, model_version)
    threshold, hits, passed = found
    return Certificate(threshold, "", budget, len(ordinary), hits, passed, embedder, model_version)


def _split(trials: Sequence[Trial]) -> tuple[list[Trial], list[Trial]]:
    """Separate ordinary questions from opposites; an opposite whose stored answer is right is none."""
    ordinary = [trial for trial in trials if trial.kind == TRAFFIC]
    return ordinary, [trial for trial in trials if trial.kind != TRAFFIC and not trial.right]


class _Walk:
    """The thresholds that are tested, and how each of them does."""

    def __init__(self, ordinary: Sequence[Trial], opposite: Sequence[Trial], budget: HitBudget) -> None:
        self._budget = budget
        similarity = np.array([trial.similarity for trial in ordinary], dtype=np.float64)
        order = np.argsort(-similarity, kind="stable")
        self._similarity = similarity[order]
        wrong = np.array([not trial.right for trial in ordinary], dtype=bool)[order]
        self._wrong = np.concatenate([[0], np.cumsum(wrong)])
        self._opposite = np.sort(np.array([trial.similarity for trial in opposite], dtype=np.float64))
        # All starting points are chosen by counts of hits, before any answer is looked at.
        self._needed = _needed(budget.false_hits, self._tail(_STARTS))
        self._levels, self._starts = self._plan()

    def _tail(self, starts: int) -> float:
        return (1 - self._budget.level) / starts

    def _plan(self) -> tuple[list[float], list[int]]:
        available = int(np.sum(self._similarity > 0))
        starts = [self._needed * 2**index for index in range(_STARTS)]
        starts = [hits for hits in starts if hits <= available]
        return self._thresholds(available), starts

    def _thresholds(self, available: int) -> list[float]:
        """List thresholds from strict to loose, each with a tenth more hits than the one before."""
        found: list[float] = []
        hits = self._needed
        while hits <= available:
            threshold = float(self._similarity[hits - 1])
            if not found or threshold < found[-1]:
                found.append(threshold)
            hits = max(hits + 1, math.ceil(hits * _STEP))
        return found

    @property
    def reason(self) -> str:
        """Why there are too few trials to find anything; empty if there are enough."""
        budget = self._budget
        if not self._starts:
            return (
                f"a share of false hits of at most {budget.false_hits:.2%} takes {self._needed} hits to "
                f"show, there are {len(self._similarity)} questions in all: replay more of them"
            )
        needed = 0 if budget.opposites is None else _needed(budget.opposites, self._tail(_STARTS))
        if len(self._opposite) < needed:
            return (
                f"that at most {budget.opposites:.2%} of the opposites are let through takes {needed} of "
                f"them to show, there are {len(self._opposite)} with another answer: add more"
            )
        return ""

    def counts(self, threshold: float) -> tuple[int, int, int]:
        """Count hits, false hits, and opposites let through."""
        hits = int(np.searchsorted(-self._similarity, -threshold, side="right"))
        passed = len(self._opposite) - int(np.searchsorted(self._opposite, threshold, side="left"))
        return hits, int(self._wrong[hits]), passed

    def loosest(self) -> tuple[float, Bounded, Bounded | None] | None:
        """Walk from each starting point to the first failure; return the loosest threshold that passed."""
        tail = self._tail(len(self._starts))
        passes = self._passes(tail)
        last = -1
        for start in self._starts:
            enough = (place for place, level in enumerate(self._levels) if self.counts(level)[0] >= start)
            place = next(enough, len(self._levels))
            while place < len(self._levels) and passes[place]:
                last = max(last, place)
                place += 1
        if last < 0:
            return None
        threshold = self._levels[last]
        hits, false, passed = self.counts(threshold)
        opposites = None
        if self._budget.opposites is not None:
            opposites = _bounded(passed, len(self._opposite), tail)
        return threshold, _bounded(false, hits, tail), opposites

    def _passes(self, tail: float) -> NDArray[np.bool_]:
        """Test each threshold: both shares would be this low by chance with at most `tail`."""
        from scipy.stats import binom

        counts = np.array([self.counts(level) for level in self._levels])
        # Clopper and Pearson's bound is within the budget exactly where this tail is small enough.
        passes: NDArray[np.bool_] = binom.cdf(counts[:, 1], counts[:, 0], self._budget.false_hits) <= tail
        if self._budget.opposites is not None:
            passes &= binom.cdf(counts[:, 2], len(self._opposite), self._budget.opposites) <= tail
        return passes

    def refusal(self) -> str:
        """Say what the strictest threshold would have let through."""
        hits, false, passed = self.counts(self._levels[0])
        tail, budget = self._tail(len(self._starts)), self._budget
        found = f"false hits {_bounded(false, hits, tail).text()}, budget {budget.false_hits:.2%}"
        if budget.opposites is not None:
            through = _bounded(passed, len(self._opposite), tail).text()
            found += f"; opposites let through {through}, budget {budget.opposites:.2%}"
        return f"no similarity keeps the budget: at {self._levels[0]:.4f}, {found}"


def _needed(share: float, tail: float) -> int:
    """Count the trials without a single failure that show a share to be within the budget."""
    return math.ceil(math.log(tail) / math.log1p(-share))


def _bounded(count: int, total: int, tail: float) -> Bounded:
    """Bound a share from above; the interval with two ends has the same upper end at twice the tail."""
    return Bounded(count, total, proportion(count, total, level=1 - 2 * tail).high)
