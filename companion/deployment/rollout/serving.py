"""A rollout in the place of a server's one model: loaded, ready, drained and closed as that is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from companion.deployment.answering import Answer, Answerer, Question
from companion.deployment.batching import BatchingLimits, refusals
from companion.deployment.caching.flight import SingleFlight
from companion.deployment.observing import ServingObserver, Unobserved
from companion.deployment.problems import MODEL_FAILED, NOT_READY, ProblemError
from companion.deployment.rollout.control import Rollout
from companion.deployment.rollout.inspecting import inspect_folder
from companion.deployment.rollout.settings import RolloutSettings
from companion.deployment.rollout.summing import SummedQueues
from companion.deployment.rollout.versions import Inspect
from companion.deployment.service import ModelService, ServedModel

if TYPE_CHECKING:
    from companion.deployment.batching.batcher import Batcher

__all__ = ["FolderVersion", "RolloutService"]

logger = logging.getLogger("companion.deployment")

_LOWEST = 19
"""The niceness of threads that run what no client waits for."""

Front = Callable[[Answerer, Callable[[], str]], SingleFlight]
"""Puts caches in front of a model whose version the callable gives."""


class FolderVersion:
    """One folder, loaded, behind a batcher of its own and caches of its own.

    It is a `companion.deployment.rollout.versions.BackgroundVersion`: copies of questions run in another
    batcher over the same model, whose one thread steps back whenever a client's question wants the processor.
    They pass by the caches, since they are there to show what the model says and how long it takes.

    Parameters
    ----------
    service : ModelService
        Loaded.
    front : Front, optional
        Without, nothing is cached.
    """

    def __init__(self, service: ModelService, front: Front | None = None) -> None:
        self.service = service
        self._version = service.model.manifest.model_version
        self._cache = None if front is None else front(service, lambda: self._version)
        self._answerer: Answerer = self._cache or service
        self._background: Batcher | None = None

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question."""
        return await self._answerer.answer(question, deadline=deadline)

    async def answer_in_background(self, question: Question, *, deadline: float) -> Answer:
        """Answer a question that no client waits for."""
        if self._background is None:
            from companion.deployment.batching.batcher import Batcher

            batcher = self.service.batcher
            self._background = Batcher(
                batcher.model, limits=batcher.limits, start=batcher.backlog.cost, niceness=_LOWEST
            )
            self._background.start()
        return await self._background.answer(question, deadline=deadline)

    async def aclose(self) -> None:
        """End its threads, and let the model go."""
        if self._cache is not None:
            await self._cache.aclose()
        if self._background is not None:
            await self._background.aclose()
        await self.service.aclose()


class RolloutService:
    """Answers by a `Rollout`, and is to the server what a `ModelService` is.

    Parameters
    ----------
    folder : Path
        The version to start with.
    load : callable
        Opens a folder; called in a worker thread.
    state_file : Path
        Where the stage is kept over a restart.
    workers : int
        Batches that run at the same time, for each version.
    limits : BatchingLimits, optional
    observer : ServingObserver, optional
        Told of all versions together, but not of copies; and of what happens to a version.
    front : Front, optional
        Puts caches in front of each version.
    root : Path, optional
        The only folder from below which versions are loaded.
    settings : RolloutSettings, optional
    inspect : callable
        Reads a folder's description of itself.
    """

    def __init__(
        self,
        folder: Path,
        load: Callable[[Path], ServedModel],
        *,
        state_file: Path,
        workers: int = 1,
        limits: BatchingLimits | None = None,
        observer: ServingObserver | None = None,
        front: Front | None = None,
        root: Path | None = None,
        settings: RolloutSettings | None = None,
        inspect: Inspect = inspect_folder,
    ) -> None:
        self._load, self._workers, self._front = load, workers, front
        observer = observer or Unobserved()
        self._queues = SummedQueues(observer)
        self._draining = False
        self._asked = 0
        self._nothing_asked = asyncio.Event()
        self._nothing_asked.set()
        self.limits = limits or BatchingLimits()
        self.rollout = Rollout(
            folder,
            self._open,
            state_file=state_file,
            settings=settings,
            root=root,
            inspect=inspect,
            event=observer.event,
        )
        self.report: Callable[[Exception], None] = _log
        """Told when the first version cannot be loaded; by default it writes to the log."""
        self.failure: Exception | None = None
        """Why there will never be a version."""
        self.settled = asyncio.Event()
        """Set when loading the live version has ended, well or badly."""

    async def load(self) -> None:
        """Load the live version; what else was there before a restart follows in the background."""
        try:
            await self.rollout.start()
        except Exception as error:
            self.failure = error
            self.report(error)
        finally:
            self.settled.set()

    async def _open(self, folder: Path) -> FolderVersion:
        service = ModelService(
            lambda: self._load(folder),
            workers=self._workers,
            limits=self.limits,
            observer=self._queues.part(),
        )
        service.report = lambda error: None  # it is raised below
        await service.load()
        if service.failure is not None:
            raise service.failure
        return FolderVersion(service, self._front)

    @property
    def live(self) -> ModelService:
        """The live version's model and batcher.

        Raises
        ------
        ProblemError
            503 `not-ready` before it is loaded, 503 `model-failed` when it never will be.
        """
        if self.failure is not None:
            raise ProblemError(MODEL_FAILED, "This server cannot answer; its log has the reason.")
        live = self.rollout.live
        if live is None:
            raise ProblemError(NOT_READY, "Try again in a moment.", retry_after_s=1)
        return cast(FolderVersion, live.opened).service

    @property
    def batcher(self) -> Batcher:
        """The live version's batcher; raises as `live`."""
        return self.live.batcher

    @property
    def model(self) -> ServedModel:
        """The live version's model; raises as `live`."""
        return self.live.model

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question.

        Returns
        -------
        Answer
            Its labels in the order of the version that the server was started with: a client that reads
            probabilities by their place, as KServe's do, must not notice which version answered.

        Raises
        ------
        ProblemError
            As `live`, and as `Rollout.answer`.
        """
        if self.failure is not None:
            raise ProblemError(MODEL_FAILED, "This server cannot answer; its log has the reason.")
        self._asked += 1
        self._nothing_asked.clear()
        try:
            answer = await self.rollout.answer(question, deadline=deadline)
        finally:
            self._asked -= 1
            if not self._asked:
                self._nothing_asked.set()
        return _in_order(answer, self.rollout.origin_labels)

    def refusal(self) -> ProblemError | None:
        """Say why no request at all would be let in now; None when one may be."""
        if self._draining:
            return refusals.draining()
        live = self.rollout.live
        return None if live is None else cast(FolderVersion, live.opened).service.refusal()

    def check_ready(self) -> None:
        """Do nothing if questions are answered.

        A candidate that hangs is no reason to take the server out of service: the live version answers its
        questions, and it is taken back.

        Raises
        ------
        ProblemError
            503, as `ModelService.check_ready` of the live version.
        """
        live = self.live
        if self._draining:
            raise refusals.draining()
        live.check_ready()

    def drain(self) -> None:
        """Let no further request in; one that had begun is answered, by whichever version."""
        self._draining = True

    async def drained(self) -> None:
        """Wait until every question that was accepted is answered."""
        await self._nothing_asked.wait()

    async def aclose(self) -> None:
        """Answer what was accepted, and close all versions."""
        self.drain()
        await self.rollout.aclose()


def _in_order(answer: Answer, labels: tuple[str, ...]) -> Answer:
    if answer.labels == labels:
        return answer
    by_label = dict(zip(answer.labels, answer.values, strict=True))
    return replace(answer, values=tuple(by_label[label] for label in labels), labels=labels)


def _log(error: Exception) -> None:
    logger.error("the model could not be loaded: %s", error)
