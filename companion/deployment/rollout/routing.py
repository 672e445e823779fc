"""Who is asked: the live version or the candidate, decided by a hash and by nothing else.

The same caller is always treated alike, in every process and after every restart, and who is in at 5% is in
at 20%: a canary that grows takes new callers and drops none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from companion.deployment.answering import Question

__all__ = [
    "Caller",
    "Traffic",
    "Wish",
    "calling",
    "compared",
    "copied",
    "current_caller",
    "place",
    "to_candidate",
]

Wish = Literal["live", "candidate"]

_BITS = 53
"""What a float holds exactly: with more, the largest hash would round to 1."""

_CALLER: ContextVar[Caller | None] = ContextVar("companion_rollout_caller", default=None)


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes
    ----------
    sticky : str
        What stays the same for one caller: a session's id, else the id of the request.
    wish : {"live", "candidate"} or None
        The version that this request names itself.
    """

    sticky: str
    wish: Wish | None = None


@dataclass(frozen=True)
class Traffic:
    """What a candidate is asked.

    Parameters
    ----------
    canary : float
        Share of the callers whom it answers.
    by_header : bool
        Whether it also answers a request that names it.
    shadow : float
        Share of the live version's questions of which it gets a copy.

    Raises
    ------
    ValueError
        When a share is not between 0 and 1.
    """

    canary: float = 0.0
    by_header: bool = False
    shadow: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("canary", "shadow"):
            share = getattr(self, name)
            if not (math.isfinite(share) and 0 <= share <= 1):
                raise ValueError(f"the share for {name} is {share}, expected 0 to 1 such as 0.05.")


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Say who asks, for all questions that this task and its children put inside the block."""
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(token)


def current_caller() -> Caller | None:
    """Return who asks, or None where nobody said so."""
    return _CALLER.get()


def place(identity: str, salt: str) -> float:
    """Map an identity to a fixed number, spread evenly over 0 to 1.

    Parameters
    ----------
    identity : str
    salt : str
        Another salt mixes the identities afresh.

    Returns
    -------
    float
        From 0 up to, but not including, 1.
    """
    found = blake2b(f"{salt}\0{identity}".encode(errors="surrogatepass"), digest_size=8).digest()
    return float((int.from_bytes(found) >> (64 - _BITS)) / (1 << _BITS))


def to_candidate(traffic: Traffic, caller: Caller | None, question: Question, version: str) -> bool:
    """Decide whether the candidate answers this question.

    Parameters
    ----------
    traffic : Traffic
    caller : Caller or None
        None: nobody said who asks; then one text always gets one version.
    question : Question
    version : str
        The candidate's. It is the salt: the next candidate is tried on other callers.

    Returns
    -------
    bool
    """
    if caller is not None and caller.wish is not None:
        return caller.wish == "candidate" and (
            traffic.by_header or _in_canary(traffic, caller, question, version)
        )
    return _in_canary(traffic, caller, question, version)


def copied(traffic: Traffic, caller: Caller | None, question: Question, version: str) -> bool:
    """Decide whether the candidate gets a copy of a question that the live version answered.

    Parameters
    ----------
    traffic, caller, question, version
        As for `to_candidate`.

    Returns
    -------
    bool
        Independent of who is in the canary, and spread over the questions of a caller.
    """
    return place(_one_question(caller, question), f"shadow {version}") < traffic.shadow


def compared(share: float, caller: Caller | None, question: Question, version: str) -> bool:
    """Decide whether the live version gets a copy of a question that the candidate answered.

    Parameters
    ----------
    share : float
        Of the candidate's answers.
    caller, question, version
        As for `to_candidate`.

    Returns
    -------
    bool
    """
    return place(_one_question(caller, question), f"compared {version}") < share


def _in_canary(traffic: Traffic, caller: Caller | None, question: Question, version: str) -> bool:
    identity = question.text if caller is None else caller.sticky
    return place(identity, f"canary {version}") < traffic.canary


def _one_question(caller: Caller | None, question: Question) -> str:
    return f"{'' if caller is None else caller.sticky}\0{question.text}\0{question.pair or ''}"
