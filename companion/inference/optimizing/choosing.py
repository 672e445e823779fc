"""The two rules: which candidates may be taken, and which of them is."""

from __future__ import annotations

from collections.abc import Sequence

from companion.inference.benchmarking.report import Faster, faster_than
from companion.inference.optimizing.record import Aim, Tried
from companion.inference.quality.gate import UNDECIDED, Gate
from companion.inference.quality.record import Quality

__all__ = ["SIMPLEST_FIRST", "choose", "compared", "refusal"]

SIMPLEST_FIRST = ("fp32", "int8", "int8-weights", "int8-fixed", "int4-weights", "int8-mixed")
"""The names of all candidates: the fewer things can go wrong with one, the earlier it comes."""


def refusal(quality: Quality, gate: Gate, *, accept_undecided: bool) -> str | None:
    """Say why a candidate may not be taken.

    What is not shown to stay within the budget is refused. Where the examples are too few to show it,
    `accept_undecided` lets pass what seems to stay within it.

    Parameters
    ----------
    quality : Quality
    gate : Gate
        Of that quality.
    accept_undecided : bool

    Returns
    -------
    str or None
        None where it may be taken.
    """
    seems = accept_undecided and gate.outcome == UNDECIDED and 100 * quality.drop.value <= gate.max_drop
    return None if gate or seems else gate.detail


def choose(candidates: Sequence[Tried], objective: Aim) -> tuple[Tried, tuple[Tried, ...]]:
    """Take the best, or of several that this run cannot tell apart, the one that changes the fewest answers.

    Parameters
    ----------
    candidates : sequence of Tried
        At least one; none refused, all measured.
    objective : {"latency", "throughput", "size"}
        The median of single texts of all lengths, the median of the largest batch, or the folder's bytes.

    Returns
    -------
    winner : Tried
    tied : tuple of Tried
        The others that were not slower, or by so little that the interval of the median ratio reaches 1.
    """
    if objective == "size":
        return min(candidates, key=lambda one: (one.bytes or 0, *_trust(one))), ()
    best = min(candidates, key=lambda one: one.timing(objective).median)
    close = [one for one in candidates if one is best or _highest(compared(best, one, objective)) >= 1]
    winner = min(close, key=_trust)
    return winner, tuple(one for one in close if one is not winner)


def compared(first: Tried, other: Tried, objective: Aim) -> Faster:
    """Say how many times faster the other is, turn by turn."""
    return faster_than(first.timing(objective), other.timing(objective))


def _trust(one: Tried) -> tuple[float, int]:
    return one.changed, SIMPLEST_FIRST.index(one.name)


def _highest(found: Faster) -> float:
    return found.spread[1] if found.high is None else found.high
