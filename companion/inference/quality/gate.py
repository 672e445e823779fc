"""The release gate: a drop in quality against a budget, with an answer for too few examples."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from companion.inference.intervals import Estimate, paired_difference

__all__ = ["FAILS", "PASSES", "UNDECIDED", "Gate", "Outcome", "judge_drop"]

Outcome = Literal["passes", "fails", "not enough data to tell"]
PASSES: Outcome = "passes"
FAILS: Outcome = "fails"
UNDECIDED: Outcome = "not enough data to tell"

_MOST = 10**9  # examples: more is the same as never


@dataclass(frozen=True)
class Gate:
    """What the gate says. As a condition it is true only where it passes.

    Attributes
    ----------
    outcome : {"passes", "fails", "not enough data to tell"}
    max_drop : float
        The budget in points.
    examples_needed : int or None
        About how many examples would decide it, if they are like those at hand. None where it is decided, or
        where the drop lies so close to the budget that no number would.
    detail : str
        One sentence with the numbers.
    """

    outcome: Outcome
    max_drop: float
    examples_needed: int | None
    detail: str

    def __bool__(self) -> bool:
        """Tell whether it passes."""
        return self.outcome == PASSES

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the attributes by their names."""
        return asdict(self)


def judge_drop(
    drop: Estimate,
    *,
    metric: str,
    examples: int,
    max_drop: float,
    level: float,
    disagreements: tuple[int, int] | None = None,
) -> Gate:
    """Compare the interval of a drop with a budget.

    Parameters
    ----------
    drop : Estimate
        Reference minus candidate, where 1 is the best that the metric can be.
    metric : str
        To name in the sentence.
    examples : int
        How many the interval is from.
    max_drop : float
        The budget in points: hundredths of the metric.
    level : float
        The interval's.
    disagreements : tuple of int, optional
        Examples that only the reference, and only the candidate, gets right, where `drop` is the difference
        of two shares: then the number of examples needed is found by that very interval. Otherwise the
        interval is taken to shrink with the square root of their number.

    Returns
    -------
    Gate

    Raises
    ------
    ValueError
        When `max_drop` is negative or no number.
    """
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise ValueError(f"max_drop is {max_drop}, expected points of at least 0, such as 0.5")
    value, low, high = (100 * number for number in (drop.value, drop.low, drop.high))
    found = (
        f"{metric} drops by {value:.2f} points ({low:.2f} to {high:.2f}), at most {max_drop:g} are allowed"
    )
    if high <= max_drop:
        return Gate(PASSES, max_drop, None, f"passes: {found}")
    if low > max_drop:
        return Gate(FAILS, max_drop, None, f"fails: {found}")
    needed = _needed(drop, examples, max_drop / 100, level, disagreements)
    if needed is None:
        advice = "the drop is so close to the limit that more examples would not decide it"
    else:
        side = "pass" if value < max_drop else "fail"
        advice = f"about {needed:,} examples like these would let it {side}, there are {examples:,}"
    return Gate(UNDECIDED, max_drop, needed, f"not enough data to tell: {found}; {advice}")


def _needed(
    drop: Estimate, examples: int, budget: float, level: float, disagreements: tuple[int, int] | None
) -> int | None:
    """Estimate how many examples would bring the interval to one side of the budget."""
    gap = abs(budget - drop.value)
    reach = drop.high - drop.value if drop.value < budget else drop.value - drop.low
    if reach == 0 or gap < reach / math.sqrt(_MOST / examples):
        return None
    if disagreements is None:
        return math.ceil(examples * (reach / gap) ** 2)

    def decided(count: int) -> bool:
        worse, better = (part * count / examples for part in disagreements)
        found = paired_difference(worse, better, count, level=level)
        return found.high <= budget or found.low > budget

    few, enough = examples, examples
    while not decided(enough):
        few, enough = enough, 2 * enough
        if enough > _MOST:
            return None
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if decided(middle) else (middle, enough)
    return enough
