"""When a version is taken back: two sequential tests that may be looked at after every answer.

Each answer is good or bad. A test bets that from some answer on the share of bad ones is above what is
tolerated: the stake grows with each bad answer and shrinks with each good one. As long as each answer is bad
with at most the tolerated probability, whatever came before, the stake is not expected to grow, and by
Ville's inequality it ever reaches ``1 / false_alarm`` with a probability of at most `false_alarm`: over the
whole life of the version, not per look. A part of the stake is put on every possible beginning, so that a
version that turns bad after a million good answers is found soon, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Guard", "SequentialTest", "Tolerance", "Tolerances"]

_WORST = 0.95
"""The highest share of bad answers that is bet on: a bet on 1 would be lost with the first good answer."""


@dataclass(frozen=True)
class Tolerance:
    """How many bad answers are too many.

    Parameters
    ----------
    tolerated : float
        Share of bad answers up to which an alarm is a false one.
    unacceptable : float
        Share from which on an alarm must come soon.
    false_alarm : float
        Probability of ever raising a false one.

    Raises
    ------
    ValueError
        When these are not shares in rising order.
    """

    tolerated: float
    unacceptable: float
    false_alarm: float

    def __post_init__(self) -> None:
        """Refuse what no test can keep."""
        if not 0 < self.tolerated < self.unacceptable <= _WORST:
            raise ValueError(
                f"tolerated is {self.tolerated} and unacceptable {self.unacceptable}, expected "
                f"0 < tolerated < unacceptable <= {_WORST}."
            )
        if not 0 < self.false_alarm < 1:
            raise ValueError(f"false_alarm is {self.false_alarm}, expected a probability such as 0.001.")


class SequentialTest:
    """Watch a stream of good and bad answers; raise the alarm once.

    The stake after `n` answers is the sum over all beginnings `k` of ``w(k)`` times the likelihood ratios of
    the answers `k` to `n`: a Shiryaev-Roberts statistic [1]_ whose weights sum to 1, which makes it a test
    martingale [2]_. The ratio compares `unacceptable`, and two higher shares, with `tolerated`.

    Parameters
    ----------
    tolerance : Tolerance

    References
    ----------
    .. [1] Shiryaev, "On optimum methods in quickest detection problems", Theory of Probability and its
       Applications 8, 1963.
    .. [2] Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference",
       Statistical Science 38, 2023.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.answers = 0
        """Answers seen before the alarm, and with the one that raised it."""
        self.bad = 0
        """How many of them were bad."""
        self.alarm = False
        """Whether the alarm was raised. It stays raised, and later answers are not counted."""
        first, none = tolerance.unacceptable, tolerance.tolerated
        shares = sorted({first, math.sqrt(first * _WORST), _WORST})
        self._ratios = [(share / none, (1 - share) / (1 - none)) for share in shares]
        self._stakes = [0.0] * len(shares)

    def observe(self, bad: bool) -> bool:
        """Count one answer.

        Parameters
        ----------
        bad : bool

        Returns
        -------
        bool
            Whether this answer raised the alarm.
        """
        if self.alarm:
            return False
        self.answers += 1
        self.bad += bad
        begin = _weight(self.answers)
        self._stakes = [
            (stake + begin) * (if_bad if bad else if_good)
            for stake, (if_bad, if_good) in zip(self._stakes, self._ratios, strict=True)
        ]
        self.alarm = self.stake * self.tolerance.false_alarm >= 1
        return self.alarm

    @property
    def stake(self) -> float:
        """What a stake of 1 has become; the alarm is raised at ``1 / false_alarm``."""
        return sum(self._stakes) / len(self._stakes) + _not_yet(self.answers + 1)

    def always_enough(self, after: int) -> int:
        """Count the bad answers in a row that raise the alarm for certain.

        Parameters
        ----------
        after : int
            Answers before them, whatever they were.

        Returns
        -------
        int
        """
        needed = math.log(len(self._ratios) / self.tolerance.false_alarm / _weight(after + 1))
        return math.ceil(needed / math.log(max(if_bad for if_bad, _ in self._ratios)))

    def __str__(self) -> str:
        """Say what was seen and what is tolerated."""
        return (
            f"{self.bad:,} bad of {self.answers:,}, tolerated are {self.tolerance.tolerated:.3g} of all "
            f"(probability of a false alarm at most {self.tolerance.false_alarm:.2g})"
        )


def _not_yet(number: int) -> float:
    """Return the stake that is kept for beginnings from answer `number` on (the first is 1)."""
    return 1 / (1 + math.log(number))


def _weight(number: int) -> float:
    """Return ``_not_yet(number) - _not_yet(number + 1)``, without the loss of digits."""
    return math.log1p(1 / number) * _not_yet(number) * _not_yet(number + 1)


@dataclass(frozen=True)
class Tolerances:
    """What is tolerated of a version before it is taken back.

    With both defaults a version that should stay is taken back with a probability of at most 0.001.

    Attributes
    ----------
    errors : Tolerance
        Answers that did not come, came too late, or were no answers.
    disagreements : Tolerance
        Answers that differ from those of the version it is compared with.
    """

    errors: Tolerance = Tolerance(tolerated=0.01, unacceptable=0.10, false_alarm=0.0005)
    disagreements: Tolerance = Tolerance(tolerated=0.10, unacceptable=0.35, false_alarm=0.0005)


@dataclass
class Guard:
    """The two tests of one version.

    Parameters
    ----------
    tolerances : Tolerances
    """

    tolerances: Tolerances
    errors: SequentialTest = field(init=False)
    disagreements: SequentialTest = field(init=False)

    def __post_init__(self) -> None:
        """Begin both tests."""
        self.errors = SequentialTest(self.tolerances.errors)
        self.disagreements = SequentialTest(self.tolerances.disagreements)

    def answered(self, *, error: bool) -> str | None:
        """Count an answer, or one that failed.

        Returns
        -------
        str or None
            Why the version must be taken back, when this is the answer that decides it.
        """
        return f"errors: {self.errors}" if self.errors.observe(error) else None

    def compared(self, *, disagrees: bool) -> str | None:
        """Count a comparison; returns as `answered`."""
        return f"disagreement: {self.disagreements}" if self.disagreements.observe(disagrees) else None
