"""The batcher: takes questions one by one in an event loop, answers them in batches from worker threads."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from companion.deployment.answering import Answer, Question
from companion.deployment.batching.estimating import Estimates
from companion.deployment.batching.heartbeat import Heartbeat
from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.batching.refusals import stuck, too_late
from companion.deployment.batching.running import Runner
from companion.deployment.batching.waiter import Waiter
from companion.deployment.batching.waiting import Line
from companion.deployment.batching.workers import WorkerThreads
from companion.deployment.observing import ServingObserver, Unobserved
from companion.deployment.problems import ProblemError
from companion.inference.throughput.cost import BatchCost

if TYPE_CHECKING:
    from companion.deployment.batching.model import ServedModel
    from companion.deployment.batching.running import Settled

__all__ = ["GUESS", "Backlog", "Batcher"]

_TELL_S = 1.0
"""Longest time between two words about the line, while something waits."""
_SOON_S = 0.02
"""How long after a change: many changes are one word, for who reads them looks every few seconds. That
nothing is left is said at once."""

GUESS = BatchCost(per_batch=1e-3, per_token=5e-5, per_token_squared=1e-8)
"""Cost of batches before anything ran: a small encoder on one core."""


@dataclass(frozen=True)
class Backlog:
    """What a batcher has before it at one moment.

    Attributes
    ----------
    waiting : int
        Requests in the line.
    accepted : int
        Requests that were let in and are not answered yet, those in the line included.
    idle : int
        Workers that have nothing to do.
    wait_s : float
        Estimated time until a request that comes now would run.
    oldest_s : float
        How long the oldest request in the line has waited.
    cost : BatchCost
        What batches are believed to cost.
    """

    waiting: int
    accepted: int
    idle: int
    wait_s: float
    oldest_s: float
    cost: BatchCost


class Batcher:
    """Answers questions with one model: an `Answerer`.

    Parameters
    ----------
    model : ServedModel
        Loaded, and run once.
    workers : int
        Batches that run at the same time, each in a thread of its own.
    limits : BatchingLimits, optional
    start : BatchCost
        What batches cost, until they tell it themselves.
    niceness : int
        As for `WorkerThreads`; for a model that must not slow down another one.
    observer : ServingObserver, optional
        Told of the line and the batches, from several threads. Its events are ``refused-`` and a problem's
        code, ``deadline-passed``, ``cancelled``, and ``batch-retried``.
    clock : callable
        Seconds, never going back: that of the deadlines.

    Raises
    ------
    ValueError
        If there would be no worker.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        workers: int = 1,
        limits: BatchingLimits | None = None,
        start: BatchCost = GUESS,
        niceness: int = 0,
        observer: ServingObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}, expected at least 1: one of them runs the batches.")
        limits = limits or BatchingLimits()
        self.model = model
        self.limits = limits
        self._clock = clock
        self._estimates = Estimates(start, max_length=model.max_length)
        self._heartbeat = Heartbeat(workers, stuck_after_s=limits.stuck_after_s, clock=clock)
        batch_size = 1 if _moved_by_company(model) else limits.batch_size
        self._line = Line(limits, self._estimates, self._heartbeat, batch_size=batch_size, clock=clock)
        self._observer = observer or Unobserved()
        runner = Runner(model, self._estimates, observer=self._observer, clock=clock)
        self._threads = WorkerThreads(self._line, runner, self._heartbeat, _deliver, niceness=niceness)
        self._accepted = 0
        self._nothing_accepted = asyncio.Event()
        self._nothing_accepted.set()
        self._telling = False
        self._changing = False

    def start(self) -> None:
        """Start the workers."""
        self._threads.start()

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question.

        Parameters
        ----------
        question : Question
        deadline : float
            By the batcher's clock; infinite without a limit.

        Returns
        -------
        Answer
            Bit for bit what the model says to this question alone.

        Raises
        ------
        ProblemError
            As `Line.offer`; 503 `stuck` while no worker gets on; 504 `deadline-exceeded` when the deadline
            passed while the question waited, in which case it never ran, or while it ran.
        Exception
            Whatever the model raised for this question.
        """
        loop = asyncio.get_running_loop()
        waiter = Waiter(question, deadline, loop.create_future())
        self._admit(waiter)
        timer = None
        if deadline != math.inf:
            timer = loop.call_later(deadline - waiter.arrived, _expire, waiter)
        try:
            answer: Answer = await waiter.future
            return answer
        except BaseException as error:  # too late, cancelled, or failed: nobody waits any more
            self._line.discard(waiter)
            if isinstance(error, asyncio.CancelledError):
                self._observer.event("cancelled")
            elif isinstance(error, ProblemError):
                self._observer.event("deadline-passed")
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._accepted -= 1
            if not self._accepted:
                self._nothing_accepted.set()
            self._changed()

    def _admit(self, waiter: Waiter) -> None:
        try:
            if error := self._all_stuck():
                raise error
            self._line.offer(waiter)
        except ProblemError as error:
            self._observer.event(f"refused-{error.problem.code}")
            raise
        self._accepted += 1
        self._nothing_accepted.clear()
        self._changed()
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_later(_TELL_S, self._keep_telling)

    def _changed(self) -> None:
        if not self._accepted:
            self._tell()
        elif not self._changing:
            self._changing = True
            asyncio.get_running_loop().call_later(_SOON_S, self._tell)

    def _tell(self) -> None:
        self._changing = False
        self._observer.queue(len(self._line), self._line.oldest_s())

    def _keep_telling(self) -> None:
        """Tell of a line that does not move, too."""
        self._tell()
        self._telling = self._accepted > 0
        if self._telling:
            asyncio.get_running_loop().call_later(_TELL_S, self._keep_telling)

    def refusal(self) -> ProblemError | None:
        """Say why no question at all would be let in now; None when one may be. Cheap."""
        return self._all_stuck() or self._line.refusal()

    def stuck(self) -> str | None:
        """Say what hangs; None when all is well. It is asked anew each time, so it ends by itself."""
        if ended := self._threads.ended:
            return f"{ended} of {self._heartbeat.workers} workers have ended."
        limit = self.limits.stuck_after_s
        if hanging := self._heartbeat.stuck():
            return (
                f"{len(hanging)} of {self._heartbeat.workers} workers have been in one batch for "
                f"{max(hanging):.1f} s, expected at most {limit:g} s."
            )
        oldest = self._line.oldest_s()
        if oldest > limit:
            return f"The oldest request has waited for {oldest:.1f} s, expected at most {limit:g} s."
        return None

    @property
    def backlog(self) -> Backlog:
        """What is before it now."""
        return Backlog(
            waiting=len(self._line),
            accepted=self._accepted,
            idle=self._heartbeat.idle,
            wait_s=self._line.wait_s(),
            oldest_s=self._line.oldest_s(),
            cost=self._estimates.cost,
        )

    def drain(self) -> None:
        """Let no further question in: 503 `draining`. What was accepted is answered."""
        self._line.drain()

    async def drained(self) -> None:
        """Wait until everything that was accepted is answered."""
        await self._nothing_accepted.wait()

    async def aclose(self, *, timeout_s: float = 5.0) -> None:
        """Let no further question in, answer what was accepted, and end the workers.

        Parameters
        ----------
        timeout_s : float
            Longest time to wait for a worker that hangs. It is then left behind.
        """
        self._line.close()
        await asyncio.to_thread(self._threads.join, timeout_s)

    def _all_stuck(self) -> ProblemError | None:
        if len(self._heartbeat.stuck()) < self._heartbeat.workers:
            return None
        return stuck("The model does not answer at the moment. Try again.")


def _moved_by_company(model: ServedModel) -> bool:
    """Whether the export's own check found answers that depend on what shares their batch."""
    check = getattr(model.manifest, "check", None)
    return check is not None and check.moved_by_batch > 0


def _expire(waiter: Waiter) -> None:
    if not waiter.future.done():
        waiter.future.set_exception(too_late())


def _deliver(outcomes: Sequence[Settled]) -> None:
    """Bring outcomes from a worker's thread to the loops that wait for them: one call for each loop."""
    loops: defaultdict[asyncio.AbstractEventLoop, list[Settled]] = defaultdict(list)
    for outcome in outcomes:
        loops[outcome[0].future.get_loop()].append(outcome)
    for loop, those in loops.items():
        try:
            loop.call_soon_threadsafe(_settle, those)
        except RuntimeError:  # the loop is closed, and with it everyone who waited
            continue


def _settle(outcomes: list[Settled]) -> None:
    for waiter, outcome in outcomes:
        future: asyncio.Future[Answer] = waiter.future
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
