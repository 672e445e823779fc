"""The problems that a batcher raises by itself, in one place."""

from __future__ import annotations

import math

from companion.deployment.problems import DEADLINE_EXCEEDED, DRAINING, OVERLOADED, STUCK, ProblemError

__all__ = ["draining", "overloaded", "stuck", "too_late"]

_LONGEST_RETRY_S = 60


def overloaded(detail: str, until_room_s: float) -> ProblemError:
    """Refuse for want of room.

    Parameters
    ----------
    detail : str
        What is full.
    until_room_s : float
        Estimated seconds until it is not; rounded up for `Retry-After`, to between 1 and 60.
    """
    retry_after = min(max(1, math.ceil(until_room_s)), _LONGEST_RETRY_S)
    return ProblemError(OVERLOADED, f"{detail} Try again later.", retry_after_s=retry_after)


def stuck(detail: str) -> ProblemError:
    """Refuse while something hangs."""
    return ProblemError(STUCK, detail, retry_after_s=1)


def draining() -> ProblemError:
    """Refuse because the server is about to stop, and let go of the connection."""
    error = ProblemError(DRAINING, "This server is about to stop. Ask another, or later.", retry_after_s=1)
    error.headers = {**(error.headers or {}), "Connection": "close"}
    return error


def too_late() -> ProblemError:
    """Answer a request whose deadline has passed."""
    return ProblemError(DEADLINE_EXCEEDED, "The time that this request had was over before it was answered.")
