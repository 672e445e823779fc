"""The semantic cache: a question gets the answer of a similar one, as far as a certificate allows."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.to_thread
import numpy as np
from numpy.typing import NDArray

from companion.deployment.answering import Answer, Answerer, Question
from companion.deployment.caching.agreement import Same, same_answer
from companion.deployment.caching.auditing import FalseHitAlarm
from companion.deployment.caching.borrowing import BorrowedAnswer
from companion.deployment.caching.certificate import Certificate
from companion.deployment.caching.economy import SemanticReport
from companion.deployment.caching.events import CacheCounter, CacheTally
from companion.deployment.caching.neighbours import Embed, Neighbour, NeighbourIndex, unit
from companion.deployment.problems import ProblemError

__all__ = ["SemanticCache"]

logger = logging.getLogger("companion.deployment")

Vector = NDArray[np.float32]


class SemanticCache:
    """Answers with the model's answer to the nearest text, where that is near enough.

    It works only with a `Certificate` that found a threshold, and only while the model and the vectors are
    those that the certificate is about. A share of its hits is put to the model too: they measure how often
    it is wrong in live traffic, and when that is more than the budget it switches itself off for good. Off
    means that questions pass through untouched, without being embedded.

    Pairs of texts pass through: what a model of pairs answers hangs on the difference between the two, which
    is just what their vectors are blind to.

    Parameters
    ----------
    inner : Answerer
        Asked on a miss and for an audit.
    embed : callable
        Called in a worker thread, one text at a time. When it fails the question is passed on.
    certificate : Certificate
        From `certify`.
    embedder : str
        The name of `embed`, compared with the certificate's.
    version : callable
        Gives the version of the model that would answer now.
    index : NeighbourIndex, optional
        Holds the answers.
    audit_share : float
        Share of the hits that are audited, 0 to 1.
    same : callable, optional
        Whether two answers are the same. Default: `same_answer`.
    alarm : FalseHitAlarm, optional
        Decides when there are too many false hits. Default: one for the certificate's budget.
    rng : random.Random, optional
        Chooses the audits.
    counter : CacheCounter, optional
        Told of hits, misses and audits.
    name : str
        How the counter calls this cache.
    clock : callable
        Gives the time in seconds.

    Raises
    ------
    ValueError
        When `audit_share` is no share.
    """

    def __init__(
        self,
        inner: Answerer,
        embed: Embed,
        certificate: Certificate,
        *,
        embedder: str,
        version: Callable[[], str],
        index: NeighbourIndex | None = None,
        audit_share: float = 0.05,
        same: Same | None = None,
        alarm: FalseHitAlarm | None = None,
        rng: random.Random | None = None,
        counter: CacheCounter | None = None,
        name: str = "semantic",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= audit_share <= 1:
            raise ValueError(f"SemanticCache: audit_share is {audit_share}, expected a share from 0 to 1")
        self._inner, self._embed, self._certificate = inner, embed, certificate
        self._embedder, self._version = embedder, version
        self._index = index or NeighbourIndex(clock=clock)
        self._audit_share, self._same = audit_share, same or same_answer()
        self._alarm = alarm or FalseHitAlarm(certificate.budget.false_hits)
        self._rng = rng or random.Random()
        self._counter: CacheCounter = counter or CacheTally()
        self._name, self._clock = name, clock
        self._limiter = anyio.CapacityLimiter(1)
        self._switched_off, self._failing = "", False
        self._questions = self._hits = self._audits = self._false_hits = 0
        self._lookups, self._runs = _Mean(), _Mean()

    @property
    def off(self) -> str:
        """Why the cache does not answer; empty while it does."""
        certificate = self._certificate
        if self._switched_off or certificate.threshold is None:
            return self._switched_off or certificate.reason
        if certificate.embedder != self._embedder:
            return f"its certificate is about {certificate.embedder}, the vectors are from {self._embedder}"
        if certificate.model_version != (version := self._version()):
            return f"its certificate is about model {certificate.model_version}, but {version} answers"
        return ""

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer with a similar question's answer, or from the model.

        Parameters
        ----------
        question, deadline
            As for `companion.deployment.answering.Answerer`.

        Returns
        -------
        Answer
            A `BorrowedAnswer` where it is another question's.
        """
        threshold = self._certificate.threshold
        if threshold is None or question.pair is not None or self.off:
            self._counter.count(self._name, "bypassed")
            return await self._inner.answer(question, deadline=deadline)
        vector, nearest = await self._look_up(question.text, deadline)
        if vector is None:
            return await self._inner.answer(question, deadline=deadline)
        if nearest is None or nearest.similarity < threshold:
            self._counter.count(self._name, "miss")
            answer = await self._timed(question, deadline)
            self._hold(vector, answer)
            return answer
        self._hits += 1
        self._counter.count(self._name, "hit")
        if self._rng.random() < self._audit_share:
            # Who is audited waits for the model, but is not refused where others would be answered.
            with suppress(ProblemError):
                return await self._audited(question, deadline, nearest)
        found = nearest.answer
        return BorrowedAnswer(
            found.values, found.labels, found.model_version, nearest.similarity, cached=True
        )

    def report(self) -> SemanticReport:
        """Say what the cache has saved so far, what it has cost, and whether it pays.

        The times are those that passed: under load they contain waiting, for a thread as for the model.
        """
        return SemanticReport(
            questions=self._questions,
            hits=self._hits,
            audited=self._audits,
            false_hits=self._false_hits,
            lookup_s=self._lookups.mean,
            model_s=self._runs.mean,
            budget=self._certificate.budget.false_hits,
            off=self.off,
        )

    async def aclose(self) -> None:
        """Forget all answers; `inner` belongs to whoever made it."""
        self._index.clear()

    async def _look_up(self, text: str, deadline: float) -> tuple[Vector | None, Neighbour | None]:
        """Embed and search; no vector where that fails or the text has none."""
        begun = self._clock()
        try:
            # One at a time, and never abandoned: who has waited too long for a turn leaves before it.
            async with asyncio.timeout(None if deadline == math.inf else deadline - begun):
                found = await anyio.to_thread.run_sync(self._nearest, text, limiter=self._limiter)
        except Exception as error:  # whatever the embedding raises: the model can still answer
            self._counter.count(self._name, "error")
            if not self._failing:  # once, not for each question
                logger.error("a text could not be embedded: %s", type(error).__name__)
            self._failing = True
            return None, None
        self._failing = False
        self._lookups.add(self._clock() - begun)
        self._questions += 1
        if found[0] is None:
            self._counter.count(self._name, "bypassed")
        return found

    def _nearest(self, text: str) -> tuple[Vector | None, Neighbour | None]:
        vector = unit(self._embed(text))
        return vector, None if vector is None else self._index.nearest(vector)

    async def _timed(self, question: Question, deadline: float) -> Answer:
        begun = self._clock()
        answer = await self._inner.answer(question, deadline=deadline)
        self._runs.add(self._clock() - begun)
        return answer

    def _hold(self, vector: Vector, answer: Answer) -> None:
        """Keep an answer for similar questions, if it is of the model that the certificate is about."""
        if answer.model_version == self._certificate.model_version and not isinstance(answer, BorrowedAnswer):
            self._index.add(vector, answer)
            self._counter.count(self._name, "stored")

    async def _audited(self, question: Question, deadline: float, nearest: Neighbour) -> Answer:
        """Give the model's own answer, and see whether the neighbour's would have done."""
        answer = await self._timed(question, deadline)
        if answer.model_version != nearest.answer.model_version:
            return answer  # the model has just changed: this says nothing about the cache
        right = self._same(nearest.answer, answer)
        self._audits += 1
        self._counter.count(self._name, "audited")
        if not right:
            self._false_hits += 1
            self._counter.count(self._name, "false_hit")
        if self._alarm.audited(right):
            self._switched_off = (
                f"{self._false_hits} of {self._audits} audited hits were false, the budget is "
                f"{self._certificate.budget.false_hits:.2%}"
            )
            self._index.clear()
            logger.error("the semantic cache switched itself off: %s", self._switched_off)
        return answer


class _Mean:
    """A mean that needs no list."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum + value, self._count + 1

    @property
    def mean(self) -> float | None:
        return self._sum / self._count if self._count else None
