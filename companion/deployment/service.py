"""The one model of a server: loaded in the background, warmed up, and put behind a batcher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio.to_thread

from companion.deployment.answering import Answer, Question
from companion.deployment.batching import refusals
from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.batching.model import ServedModel, Versioned
from companion.deployment.observing import ServingObserver
from companion.deployment.problems import MODEL_FAILED, NOT_READY, ProblemError

if TYPE_CHECKING:
    from companion.deployment.batching.batcher import Batcher

__all__ = ["ModelService", "ServedModel", "Versioned"]

logger = logging.getLogger("companion.deployment")


class ModelService:
    """Load a model off the event loop, and answer questions with it: an `Answerer`.

    Parameters
    ----------
    load : callable
        Makes the model; called once, in a worker thread.
    workers : int
        Batches that run at the same time. The model should use one core for each.
    limits : BatchingLimits, optional
    observer : ServingObserver, optional
        As for `Batcher`.
    """

    def __init__(
        self,
        load: Callable[[], ServedModel],
        *,
        workers: int = 1,
        limits: BatchingLimits | None = None,
        observer: ServingObserver | None = None,
    ) -> None:
        self._load = load
        self._workers = workers
        self._observer = observer
        self.limits = limits or BatchingLimits()
        self._batcher: Batcher | None = None
        self._draining = False
        self.report: Callable[[Exception], None] = _log
        """Told when loading fails; by default it writes to the log."""
        self.failure: Exception | None = None
        """Why there will never be a model."""
        self.settled = asyncio.Event()
        """Set when loading has ended, well or badly."""

    @property
    def batcher(self) -> Batcher:
        """What answers.

        Raises
        ------
        ProblemError
            503 `not-ready` while the model loads, 503 `model-failed` when it never will be.
        """
        if self.failure is not None:
            raise ProblemError(MODEL_FAILED, "This server cannot answer; its log has the reason.")
        if self._batcher is None:
            raise ProblemError(NOT_READY, "Try again in a moment.", retry_after_s=1)
        return self._batcher

    @property
    def model(self) -> ServedModel:
        """The loaded model.

        Raises
        ------
        ProblemError
            As `batcher`.
        """
        return self.batcher.model

    async def load(self) -> None:
        """Load and warm up the model; afterwards `model` gives it, or `failure` says why not."""
        try:
            batcher = await anyio.to_thread.run_sync(self._load_and_warm, abandon_on_cancel=True)
            batcher.start()
            self._batcher = batcher
        except Exception as error:
            self.failure = error
            self.report(error)
        finally:
            self.settled.set()

    def _load_and_warm(self) -> Batcher:
        # The libraries come in here, in this thread: the port is open by now.
        from companion.deployment.batching.batcher import Batcher
        from companion.deployment.batching.calibrating import warm_up

        model = self._load()
        cost = warm_up(model, padded_tokens=self.limits.padded_tokens)
        return Batcher(model, workers=self._workers, limits=self.limits, start=cost, observer=self._observer)

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question (see `Batcher.answer`).

        Raises
        ------
        ProblemError
            As `batcher`, and as `Batcher.answer`.
        """
        return await self.batcher.answer(question, deadline=deadline)

    def refusal(self) -> ProblemError | None:
        """Say why no request at all would be let in now; None when one may be."""
        if self._draining:
            return refusals.draining()
        return None if self._batcher is None else self._batcher.refusal()

    def check_ready(self) -> None:
        """Do nothing if questions are answered.

        Raises
        ------
        ProblemError
            503: `not-ready`, `model-failed`, `draining`, or `stuck` when a worker hangs or the oldest request
            has waited for too long. It ends by itself when the cause does.
        """
        batcher = self.batcher
        if self._draining:
            raise refusals.draining()
        if reason := batcher.stuck():
            raise refusals.stuck(reason)

    @property
    def is_ready(self) -> bool:
        """Whether `check_ready` would let pass."""
        try:
            self.check_ready()
        except ProblemError:
            return False
        return True

    def drain(self) -> None:
        """Let no further request in (see `refusal`).

        One that had begun is answered, also when the end of its body is still on its way: its question may
        come after this.
        """
        self._draining = True

    async def drained(self) -> None:
        """Wait until everything that was accepted is answered."""
        if self._batcher is not None:
            await self._batcher.drained()

    async def aclose(self) -> None:
        """Answer what was accepted, and end the workers."""
        self.drain()
        if self._batcher is not None:
            await self._batcher.aclose()


def _log(error: Exception) -> None:
    logger.error("the model could not be loaded: %s", error)
