"""Questions asked a second time, beside the answer that the client already has.

A copy never delays a live question: copies wait in a short queue of their own that drops, run one at a time,
and only while the live side has nothing to do. How much they may run is bounded as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from companion.deployment.answering import Answer, Question
from companion.deployment.rollout.versions import ServedVersion

__all__ = ["CopyRules", "CopyRunner", "QuestionCopy", "next_copy"]

logger = logging.getLogger("companion.deployment.rollout")


@dataclass(frozen=True)
class CopyRules:
    """What copies may cost.

    Parameters
    ----------
    shadows : int
        Shadow copies that wait at most; further ones are dropped.
    budget : float
        Share of the time during which shadow copies run at most.
    max_age_s : float
        A shadow copy that waited longer, in seconds, is dropped.
    patience_s : float
        The copy of a canary's question runs after this time, in seconds, even when the live side is busy:
        without comparisons nobody would notice a canary that answers wrongly.
    timeout_s : float
        Longest time for one copy, in seconds.
    poll_s : float
        How often is looked, in seconds, whether the live side is still busy; only while copies wait.

    Raises
    ------
    ValueError
        When one of them leaves no room.
    """

    shadows: int = 64
    budget: float = 0.25
    max_age_s: float = 5.0
    patience_s: float = 0.1
    timeout_s: float = 5.0
    poll_s: float = 0.005

    def __post_init__(self) -> None:
        """Refuse what leaves no room."""
        for name in ("shadows", "max_age_s", "timeout_s", "poll_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"CopyRules: {name} is {getattr(self, name)}, expected above 0.")
        if not 0 < self.budget <= 1:
            raise ValueError(f"CopyRules: budget is {self.budget}, expected above 0 and at most 1.")
        if not self.patience_s >= 0:
            raise ValueError(f"CopyRules: patience_s is {self.patience_s}, expected at least 0.")


@dataclass(frozen=True)
class QuestionCopy:
    """A question that was answered, and the version that shall answer it too.

    Attributes
    ----------
    question : Question
    given : Answer
        What the client got.
    asked : ServedVersion
    candidate : ServedVersion
        The version that is judged: the one asked in a shadow, the one that answered in a canary.
    born : float
        When the client got its answer, by the runner's clock.
    """

    question: Question
    given: Answer
    asked: ServedVersion
    candidate: ServedVersion
    born: float

    @property
    def is_shadow(self) -> bool:
        """Whether the client's answer came from the live version."""
        return self.asked is self.candidate


CopyOutcome = Callable[[QuestionCopy, "Answer | Exception", float], None]
"""Told what came of a copy, and after how many seconds; the exception may be a `TimeoutError`."""


def next_copy(
    canary: deque[QuestionCopy],
    shadow: deque[QuestionCopy],
    rules: CopyRules,
    *,
    now: float,
    busy: bool,
    rested: float,
) -> QuestionCopy | None:
    """Choose the copy that runs now, and take it out of its queue; None when all have to wait.

    Parameters
    ----------
    canary, shadow : deque of QuestionCopy
        What waits, oldest first. A canary's copies come first.
    rules : CopyRules
    now : float
    busy : bool
        Whether the live side has something to do.
    rested : float
        When the next shadow copy may run.

    Returns
    -------
    QuestionCopy or None
    """
    if canary and (not busy or now - canary[0].born >= rules.patience_s):
        return canary.popleft()
    if shadow and not busy and now >= rested:
        return shadow.popleft()
    return None


class CopyRunner:
    """Runs copies, one at a time.

    Parameters
    ----------
    rules : CopyRules
    busy : callable
        Whether the live side has something to do.
    outcome : callable
        Told of each copy that ran.
    clock, sleep : callable
        As `time.monotonic` and `asyncio.sleep`.
    """

    def __init__(
        self,
        rules: CopyRules,
        *,
        busy: Callable[[], bool],
        outcome: CopyOutcome,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rules = rules
        self.dropped = 0
        """Shadow copies that never ran."""
        self._busy, self._outcome, self._clock, self._sleep = busy, outcome, clock, sleep
        self._canary: deque[QuestionCopy] = deque()
        self._shadow: deque[QuestionCopy] = deque()
        self._rested = clock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Copies that wait."""
        return len(self._canary) + len(self._shadow)

    def start(self) -> None:
        """Begin to run copies, in a task of this event loop."""
        self._task = asyncio.create_task(self._run(), name="rollout copies")

    async def aclose(self) -> None:
        """Stop, and forget what waits."""
        self.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def clear(self) -> None:
        """Forget what waits: the version that it was for is gone."""
        self._canary.clear()
        self._shadow.clear()

    def offer(self, copy: QuestionCopy) -> bool:
        """Put a copy into its queue.

        Returns
        -------
        bool
            False when a shadow copy found the queue full and was dropped. A canary's copy always has a
            place: who asks the candidate counts first, see `companion.deployment.rollout.asking`.
        """
        if copy.is_shadow:
            self._drop_old()
            if len(self._shadow) >= self.rules.shadows:
                self.dropped += 1
                return False
            self._shadow.append(copy)
        else:
            self._canary.append(copy)
        self._wake.set()
        return True

    async def _run(self) -> None:
        while True:
            if not self.waiting:
                self._wake.clear()
                await self._wake.wait()
            self._drop_old()
            now = self._clock()
            copy = next_copy(
                self._canary, self._shadow, self.rules, now=now, busy=self._busy(), rested=self._rested
            )
            if copy is None:
                await self._sleep(self.rules.poll_s)
                continue
            try:
                await self._one(copy)
            except Exception:  # the copies must go on
                logger.exception("the outcome of a copied question could not be counted")

    async def _one(self, copy: QuestionCopy) -> None:
        started = self._clock()
        result: Answer | Exception
        try:
            async with asyncio.timeout(self.rules.timeout_s):
                deadline = time.monotonic() + self.rules.timeout_s
                result = await copy.asked.answer(
                    copy.question, deadline=deadline, in_background=copy.is_shadow
                )
        except Exception as error:
            result = error
        ended = self._clock()
        if copy.is_shadow:
            self._rested = ended + (ended - started) * (1 / self.rules.budget - 1)
        self._outcome(copy, result, ended - started)

    def _drop_old(self) -> None:
        oldest = self._clock() - self.rules.max_age_s
        while self._shadow and self._shadow[0].born < oldest:
            self._shadow.popleft()
            self.dropped += 1
