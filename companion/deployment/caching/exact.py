"""The exact cache: the same question to the same model gets the answer that it got before, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from companion.deployment.answering import Answer, Answerer, Question
from companion.deployment.caching.borrowing import BorrowedAnswer
from companion.deployment.caching.events import CacheCounter, CacheTally
from companion.deployment.caching.sealing import question_key

__all__ = ["AnswerStore", "ExactCache"]


class AnswerStore(Protocol):
    """Keeps answers by key. A store that fails is slow or empty, and never an error."""

    async def get(self, key: bytes, *, deadline: float) -> Answer | None:
        """Return what was put under `key`, or None when it is not there, expired, or cannot be had.

        Parameters
        ----------
        key : bytes
            From `question_key`.
        deadline : float
            When nobody waits any more, by `time.monotonic`.
        """

    async def put(self, key: bytes, answer: Answer) -> bool:
        """Keep an answer; return False where it will not be kept."""

    async def aclose(self) -> None:
        """Finish what is under way and let go of connections."""


class ExactCache:
    """Looks a question up before it is put to the model.

    Put a `SingleFlight` in front of it, so that equal questions that come at the same time are looked up and
    run once. Two of them behind each other make two levels: ``ExactCache(ExactCache(inner, redis), memory)``.
    In front of a rollout it would hide the canary from every question that was asked before: give each
    version its own, behind the rollout. They may share a store, as the version is part of the key.

    Parameters
    ----------
    inner : Answerer
        Asked on a miss. Its errors pass through and are not stored.
    store : AnswerStore
        `MemoryStore` or `RedisStore`. Closed by `aclose`.
    version : callable
        Gives the version of the model that would answer now; called for each question. It may raise a
        `ProblemError`, such as when the model is not loaded.
    counter : CacheCounter, optional
        Told of each hit and miss.
    name : str
        How the counter calls this cache.
    """

    def __init__(
        self,
        inner: Answerer,
        store: AnswerStore,
        *,
        version: Callable[[], str],
        counter: CacheCounter | None = None,
        name: str = "exact",
    ) -> None:
        self._inner, self._store, self._version = inner, store, version
        self._counter: CacheCounter = counter or CacheTally()
        self._name = name

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer from the store, or from the model.

        Parameters
        ----------
        question, deadline
            As for `companion.deployment.answering.Answerer`.
        """
        version = self._version()
        key = question_key(question, version)
        found = await self._store.get(key, deadline=deadline)
        # The version is in the key already; a store that mixes up its keys must not mix up models.
        if found is not None and found.model_version == version:
            self._counter.count(self._name, "hit")
            return found if found.cached else replace(found, cached=True)
        self._counter.count(self._name, "miss")
        answer = await self._inner.answer(question, deadline=deadline)
        if not isinstance(answer, BorrowedAnswer):
            await self._keep(question, key, version, answer)
        return answer

    async def _keep(self, question: Question, key: bytes, version: str, answer: Answer) -> None:
        """Store an answer under the model that gave it, which may have changed in the meantime."""
        if answer.model_version != version:
            key = question_key(question, answer.model_version)
        # Marked now, so that a hit in memory has nothing left to do.
        kept = await self._store.put(key, replace(answer, cached=True))
        self._counter.count(self._name, "stored" if kept else "dropped")

    async def aclose(self) -> None:
        """Close the store; `inner` belongs to whoever made it."""
        await self._store.aclose()
