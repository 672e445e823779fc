"""Chooses between configurations that were each run with several seeds, as far as the spread allows."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from companion.training.tuning.space import Value

__all__ = ["Choice", "Validated", "choose"]

_CHEAPER = 0.8


@dataclass(frozen=True)
class Validated:
    """A configuration and its runs with several seeds.

    Attributes
    ----------
    name : str
        ``"default"``, ``"best"``, ``"second"``, ...
    values : dict of str to value
        What it changes; empty for the default.
    scores : tuple of float
        Shape ``(seeds,)``: the value of each run; infinitely bad where it diverged.
    seconds : float
        Mean wall-clock time of a run.
    """

    name: str
    values: dict[str, Value] = field(default_factory=dict)
    scores: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.scores) / len(self.scores)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; NaN when a run diverged."""
        return statistics.stdev(self.scores) if all(map(math.isfinite, self.scores)) else math.nan


@dataclass(frozen=True)
class Choice:
    """Which configuration to take.

    Attributes
    ----------
    name : str
        That of a `Validated`.
    distinguishable : bool
        Whether it is better than the default by more than the seeds explain. False also when the default
        itself has the best mean.
    p_value : float or None
        Of the best mean against the default's, times the number of comparisons; None when the default has
        the best mean.
    reason : str
        In words.
    """

    name: str
    distinguishable: bool
    p_value: float | None
    reason: str


def choose(validated: Sequence[Validated], *, higher_is_better: bool = True, level: float = 0.05) -> Choice:
    """Take a configuration other than the default only when the spread over the seeds supports it.

    Each configuration is compared with the default by Welch's test for unequal variances, one-sided, its
    p-values corrected for their number by Bonferroni. Of those that pass, the one with the best mean is
    taken; or one that cannot be told from it and needs at most 0.8 of its time.

    The seeds measure the noise of training. All runs share their development examples: noise from those is
    not in the spread, and the best of many trials looks better on them than on others.

    Parameters
    ----------
    validated : sequence of Validated
        At least two, the default first, each with at least two finite or infinite scores.
    higher_is_better : bool
    level : float
        Probability of leaving a default that is as good as everything else.

    Returns
    -------
    Choice

    Raises
    ------
    ValueError
        With fewer configurations or scores.
    """
    if len(validated) < 2 or any(len(one.scores) < 2 for one in validated):
        raise ValueError("expected the default and at least one other configuration, with two scores each")
    default, others = (
        validated[0],
        sorted(validated[1:], key=lambda one: one.mean if not higher_is_better else -one.mean),
    )
    best = others[0]
    if not _better(best.mean, default.mean, higher_is_better):
        return Choice(default.name, False, None, f"No configuration has a better mean than {default.name}.")
    p = {one.name: min(1.0, len(others) * _p(one, default, higher_is_better)) for one in others}
    sentence = (
        f"{best.name}{_settings(best)}: {_words(best)}; {default.name}: {_words(default)}; "
        f"{len(best.scores)} seeds, "
        f"p = {p[best.name]:.2g} after correction for {len(others)} comparisons"
    )
    passed = [one for one in others if p[one.name] < level]
    if not passed:
        return Choice(default.name, False, p[best.name], f"Not distinguishable from the default. {sentence}.")
    first = passed[0]
    taken = first
    for other in passed[1:]:
        if other.seconds <= _CHEAPER * taken.seconds and _p(first, other, higher_is_better) >= level:
            taken = other
    cheaper = (
        ""
        if taken is first
        else f" {taken.name} cannot be told from {first.name}, and takes {taken.seconds / first.seconds:.2f} "
        "of its time."
    )
    return Choice(taken.name, True, p[taken.name], f"Better than the default. {sentence}.{cheaper}")


def _better(one: float, other: float, higher_is_better: bool) -> bool:
    return one > other if higher_is_better else one < other


def _p(one: Validated, other: Validated, higher_is_better: bool) -> float:
    """Return the probability of a difference this large in favour of `one` when there is none."""
    from scipy.stats import ttest_ind

    if not all(map(math.isfinite, one.scores)):
        return 1.0
    if not all(map(math.isfinite, other.scores)):
        return 0.0 if _better(one.mean, other.mean, higher_is_better) else 1.0
    if one.spread == other.spread == 0:
        return 0.0 if _better(one.mean, other.mean, higher_is_better) else 1.0
    side = "greater" if higher_is_better else "less"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side has no spread: the other's counts
        return float(ttest_ind(one.scores, other.scores, equal_var=False, alternative=side).pvalue)


def _words(one: Validated) -> str:
    return f"{one.mean:.4g} ± {one.spread:.2g}"


def _settings(one: Validated) -> str:
    """Write what a configuration changes: its rank alone tells a reader nothing to use."""
    changes = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in one.values.items()
    )
    return f" ({changes})" if changes else ""
