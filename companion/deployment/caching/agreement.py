"""When two answers count as the same."""

from __future__ import annotations

from collections.abc import Callable

from companion.deployment.answering import Answer

__all__ = ["Same", "same_answer"]

Same = Callable[[Answer, Answer], bool]
"""Whether a stored answer will do in place of the model's own."""


def same_answer(*, tolerance: float = 0.5) -> Same:
    """Make the usual rule: the same most likely label; for a regression, a score that is close.

    Parameters
    ----------
    tolerance : float
        How far apart two scores may be.

    Returns
    -------
    callable
        Answers with different labels are never the same.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}, expected at least 0")

    def same(stored: Answer, own: Answer) -> bool:
        if stored.labels != own.labels or len(stored.values) != len(own.values):
            return False
        if not own.labels:
            return abs(stored.values[0] - own.values[0]) <= tolerance
        return _likeliest(stored) == _likeliest(own)

    return same


def _likeliest(answer: Answer) -> int:
    return max(range(len(answer.values)), key=answer.values.__getitem__)
