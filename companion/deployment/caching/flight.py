"""Single flight: equal questions that come at the same time are put to the model once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from companion.deployment.answering import Answer, Answerer, Question
from companion.deployment.caching.events import CacheCounter, CacheTally
from companion.deployment.problems import DEADLINE_EXCEEDED, ProblemError

__all__ = ["SingleFlight"]

_OUT_OF_TIME = (503, 504)
"""Statuses of refusals that a later deadline can avert: it cannot be met, or it has passed."""


@dataclass(eq=False)
class _Flight:
    """One run, and the deadlines of all that wait for it."""

    deadlines: list[float] = field(default_factory=list)
    task: asyncio.Task[Answer] | None = None

    @property
    def latest(self) -> float:
        return max(self.deadlines, default=-math.inf)


class SingleFlight:
    """Lets equal concurrent questions share one run, and its answer or its error.

    The run belongs to nobody: whoever asked first may leave, and it goes on while anybody waits. It has the
    latest deadline of those who wait when it begins; when that turns out too early for the model and somebody
    with a later one has joined, it begins again. When nobody waits any more it is cancelled, as if the one
    question had been.

    Parameters
    ----------
    inner : Answerer
        Such as an `ExactCache`.
    counter : CacheCounter, optional
        Told of each question that led, joined or left.
    name : str
        How the counter calls it.
    clock : callable
        Gives the time in seconds, as deadlines do.
    """

    def __init__(
        self,
        inner: Answerer,
        *,
        counter: CacheCounter | None = None,
        name: str = "flight",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._counter: CacheCounter = counter or CacheTally()
        self._name, self._clock = name, clock
        self._flights: dict[Question, _Flight] = {}

    @property
    def under_way(self) -> int:
        """How many different questions run."""
        return len(self._flights)

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Wait for the answer of the one run.

        Parameters
        ----------
        question, deadline
            As for `companion.deployment.answering.Answerer`.

        Raises
        ------
        ProblemError
            504 `deadline-exceeded` when the deadline passes first; the run goes on for the others. And what
            `inner` raises.
        """
        left = deadline - self._clock()
        if left <= 0:
            raise ProblemError(
                DEADLINE_EXCEEDED, "The deadline had passed before the question was looked at."
            )
        flight, task = self._join(question, deadline)
        try:
            await asyncio.wait({task}, timeout=None if left == math.inf else left)
        finally:
            self._leave(question, flight, task, deadline)
        if not task.done():
            self._counter.count(self._name, "left")
            raise ProblemError(DEADLINE_EXCEEDED, "The answer was not there in time.")
        if task.cancelled():
            # Not this call was cancelled, so it must not look as if it had been.
            raise RuntimeError("the run that this question waited for was cancelled, expected an answer")
        return task.result()

    async def aclose(self) -> None:
        """Cancel what runs; `inner` belongs to whoever made it."""
        tasks = {flight.task for flight in self._flights.values() if flight.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _join(self, question: Question, deadline: float) -> tuple[_Flight, asyncio.Task[Answer]]:
        flight = self._flights.get(question)
        self._counter.count(self._name, "led" if flight is None else "joined")
        if flight is None:
            flight = self._flights[question] = _Flight()
        flight.deadlines.append(deadline)
        if flight.task is None:
            flight.task = asyncio.create_task(self._run(question, flight))
            flight.task.add_done_callback(lambda task: self._land(question, flight, task))
        return flight, flight.task

    def _leave(
        self, question: Question, flight: _Flight, task: asyncio.Task[Answer], deadline: float
    ) -> None:
        flight.deadlines.remove(deadline)
        if not flight.deadlines and not task.done():
            self._forget(question, flight)  # at once: who comes now must not join what is being cancelled
            task.cancel()

    def _land(self, question: Question, flight: _Flight, task: asyncio.Task[Answer]) -> None:
        self._forget(question, flight)
        if not task.cancelled():
            task.exception()  # looked at, though all who waited may have left in this very moment

    def _forget(self, question: Question, flight: _Flight) -> None:
        if self._flights.get(question) is flight:
            del self._flights[question]

    async def _run(self, question: Question, flight: _Flight) -> Answer:
        while True:
            deadline = flight.latest
            try:
                return await self._inner.answer(question, deadline=deadline)
            except (ProblemError, TimeoutError) as error:
                late = isinstance(error, TimeoutError) or error.problem.status in _OUT_OF_TIME
                if not late or flight.latest <= deadline:
                    raise
