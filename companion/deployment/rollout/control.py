"""Several versions of a model in one process: try one, judge it, exchange it, take it back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path

from companion.deployment.answering import Answer, Question
from companion.deployment.rollout.asking import StagedAnswerer
from companion.deployment.rollout.inspecting import inspect_folder
from companion.deployment.rollout.journal import RolloutJournal
from companion.deployment.rollout.remembering import KeptVersion, RolloutState
from companion.deployment.rollout.reporting import RolloutStatus, trial_report, version_report
from companion.deployment.rollout.routing import Traffic
from companion.deployment.rollout.settings import RolloutSettings
from companion.deployment.rollout.stages import Stage, Trial
from companion.deployment.rollout.starting import begin, resume, state_of
from companion.deployment.rollout.versions import Factory, Inspect, Loader, ServedVersion

__all__ = ["Rollout", "RolloutConflictError"]


class RolloutConflictError(ValueError):
    """Something was asked for that the present stage does not allow; the message says what does."""


class Rollout:
    """Answers questions with the live version, and with a candidate as far as it is told to.

    Everything that changes who is asked is one assignment on the event loop: there is no moment without a
    live version, and no question that meets half of a change. Use it from one event loop.

    Parameters
    ----------
    folder : Path
        The version to start with.
    factory : callable
        Opens a folder: ``async (folder) -> Version``. What takes time belongs into a thread.
    state_file : Path, optional
        Where the stage is kept over a restart. One file for one process.
    settings : RolloutSettings, optional
    root : Path, optional
        The only folder from below which versions are loaded.
    busy : callable, optional
        Whether the live version has something to do: copies wait meanwhile. Default: whether it is
        answering. `live` is the version to look at.
    inspect : callable
        Reads a folder's description of itself; called in a thread.
    event : callable
        Told the name of everything that happens to a version, for metrics: see `RolloutJournal`.
    clock, now, sleep : callable
        As `time.monotonic`, `time.time` and `asyncio.sleep`.
    """

    def __init__(
        self,
        folder: Path,
        factory: Factory,
        *,
        state_file: Path | None = None,
        settings: RolloutSettings | None = None,
        root: Path | None = None,
        busy: Callable[[], bool] | None = None,
        inspect: Inspect = inspect_folder,
        event: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.settings = settings or RolloutSettings()
        self._folder = Path(folder)
        self._loader = Loader(factory, inspect, root)
        self._asking = StagedAnswerer(
            self.settings, alarm=self._on_alarm, busy=busy, clock=clock, sleep=sleep
        )
        self._journal = RolloutJournal(state_file, now, event)
        self._origin: KeptVersion | None = None
        self._loading: Path | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    # --- beginning and end

    async def start(self) -> None:
        """Load the live version; what else the state file tells of follows in the background.

        Raises
        ------
        RefusedVersionError
            When the folder cannot be used.
        """
        begun = await begin(self._folder, self._loader, self._journal)
        self._origin = begun.origin
        self._asking.stage = Stage(begun.live)
        self._asking.copies.start()
        if begun.state is not None and (kept := begun.state.candidate or begun.state.previous):
            self._loading = Path(kept.folder)
            self._spawn(self._resume(begun.state, begun.live))

    async def aclose(self) -> None:
        """Stop the copies, let every version finish what it was asked, and close it."""
        self._closed = True
        await self._asking.copies.aclose()
        await self.settled()
        stage, self._asking.stage = self._asking.stage, None
        if stage is not None:
            await asyncio.gather(*(version.aclose(self.settings.grace_s) for version in stage.versions))

    async def settled(self) -> None:
        """Wait until nothing goes on in the background: resuming, closing, writing the state."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- answers

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question: see `companion.deployment.answering.Answerer`."""
        return await self._asking.answer(question, deadline=deadline)

    @property
    def live(self) -> ServedVersion | None:
        """The live version; None before one is loaded."""
        return None if self._asking.stage is None else self._asking.stage.live

    @property
    def origin_labels(self) -> tuple[str, ...]:
        """The labels of the version that the server was started with, in its order; empty before a start."""
        return () if self._origin is None else self._origin.labels

    # --- changes

    async def load(self, folder: Path, *, other_tokenizer: bool = False) -> None:
        """Load a candidate. It is asked nothing before `canary` or `shadow` says so.

        Parameters
        ----------
        folder : Path
        other_tokenizer : bool
            Whether its tokenizer may differ from the live version's.

        Raises
        ------
        RolloutConflictError
            When there is a candidate, a previous version, or a load on its way.
        RefusedVersionError
            When the folder cannot take the live version's place. The live version is untouched.
        """
        stage = self._stage()
        self._check_free(stage)
        self._loading = Path(folder)
        try:
            candidate = await self._loader.load(
                Path(folder), live=stage.live.facts, other_tokenizer=other_tokenizer
            )
        finally:
            self._loading = None
        if self._closed:
            await candidate.aclose(0)
            raise RolloutConflictError("the server stops: nothing is loaded any more.")
        self._asking.stage = Stage(stage.live, candidate, trial=Trial(candidate, self.settings))
        self._journal.note("loaded", candidate.name, detail=str(candidate.folder))
        await self._remember()

    async def unload(self) -> None:
        """Let the candidate go, or, without one, the previous version.

        Raises
        ------
        RolloutConflictError
            When there is neither.
        """
        stage = self._stage()
        gone = stage.candidate or stage.previous
        if gone is None:
            raise RolloutConflictError("nothing to unload: the live version is the only one.")
        self._exchange(Stage(stage.live), gone)
        self._journal.note("unloaded", gone.name)
        await self._remember()

    async def canary(self, share: float, *, by_header: bool = False) -> None:
        """Let the candidate answer a share of the callers, and requests that name it.

        Parameters
        ----------
        share : float
            0 to 1.
        by_header : bool

        Raises
        ------
        RolloutConflictError
            Without a candidate.
        ValueError
            When the share is none.
        """
        await self._direct(Traffic(share, by_header, self._stage().traffic.shadow))

    async def shadow(self, share: float) -> None:
        """Let the candidate answer a copy of a share of the live questions; raises as `canary`."""
        traffic = self._stage().traffic
        await self._direct(Traffic(traffic.canary, traffic.by_header, share))

    async def promote(self) -> None:
        """Make the candidate live; keep the version before for a rollback.

        As long as that one is kept it answers what the new one fails at, and too many failures bring it
        back. `unload` ends this.

        Raises
        ------
        RolloutConflictError
            Without a candidate.
        """
        stage = self._stage()
        candidate = self._candidate(stage)
        trial = Trial(candidate, self.settings)
        self._exchange(Stage(candidate, previous=stage.live, trial=trial))
        self._journal.note("promoted", candidate.name, detail=f"in place of {stage.live.name}")
        await self._remember()

    async def rollback(self, reason: str = "asked for") -> None:
        """Go back to the version before: drop the candidate, or undo the promotion.

        Parameters
        ----------
        reason : str
            For the events and the log.

        Raises
        ------
        RolloutConflictError
            When there is neither a candidate nor a previous version.
        """
        self._roll_back(self._stage(), reason, automatic=False)
        await self._remember()

    def status(self) -> RolloutStatus:
        """Describe the versions, the traffic and what was seen."""
        stage = self._asking.stage
        loading = None if self._loading is None else str(self._loading)
        events, warnings = list(self._journal.events), list(self._journal.warnings)
        if stage is None:
            return RolloutStatus(loading=loading, events=events, warnings=warnings)
        copies = self._asking.copies
        return RolloutStatus(
            stage="candidate" if stage.candidate else "promoted" if stage.previous else "live",
            loading=loading,
            live=version_report(stage.live),
            candidate=version_report(stage.candidate),
            previous=version_report(stage.previous),
            canary=stage.traffic.canary,
            by_header=stage.traffic.by_header,
            shadow=stage.traffic.shadow,
            trial=trial_report(stage, dropped=copies.dropped, waiting=copies.waiting),
            events=events,
            warnings=warnings,
        )

    # --- behind them

    def _stage(self) -> Stage:
        if self._asking.stage is None:
            raise RolloutConflictError("no version is live yet: wait until the server is ready.")
        return self._asking.stage

    def _candidate(self, stage: Stage) -> ServedVersion:
        if stage.candidate is None:
            waits = f" {self._loading} is still being loaded." if self._loading else ""
            raise RolloutConflictError(f"there is no candidate: load one first.{waits}")
        return stage.candidate

    def _check_free(self, stage: Stage) -> None:
        if self._closed:
            raise RolloutConflictError("the server stops: nothing is loaded any more.")
        if self._loading is not None:
            raise RolloutConflictError(f"{self._loading} is being loaded: wait for it.")
        if stage.candidate is not None:
            raise RolloutConflictError(
                f"version {stage.candidate.name} is the candidate: promote it, roll it back or unload it."
            )
        if stage.previous is not None:
            raise RolloutConflictError(
                f"version {stage.previous.name} is kept for a rollback: unload it, or roll back to it."
            )

    async def _direct(self, traffic: Traffic) -> None:
        stage = self._stage()
        candidate = self._candidate(stage)
        self._asking.stage = replace(stage, traffic=traffic)
        told = f"canary {traffic.canary:g}, by header {traffic.by_header}, shadow {traffic.shadow:g}"
        self._journal.note("traffic", candidate.name, detail=told)
        await self._remember()

    def _on_alarm(self, trial: Trial, reason: str) -> None:
        stage = self._asking.stage
        if stage is not None and stage.trial is trial:
            self._roll_back(stage, reason, automatic=True)
            self._spawn(self._remember())

    def _roll_back(self, stage: Stage, reason: str, *, automatic: bool) -> None:
        if stage.candidate is not None:
            gone, after = stage.candidate, Stage(stage.live)
        elif stage.previous is not None:
            gone, after = stage.live, Stage(stage.previous)
        else:
            raise RolloutConflictError(
                "nothing to roll back: there is neither a candidate nor a version before."
            )
        self._exchange(after, gone)
        self._journal.note("rolled back", gone.name, automatic=automatic, detail=reason)

    def _exchange(self, stage: Stage, gone: ServedVersion | None = None) -> None:
        """Put another stage in place; let go of a version that has no part in it."""
        self._asking.stage = stage
        self._asking.copies.clear()
        if gone is not None:
            self._spawn(gone.aclose(self.settings.grace_s))

    async def _resume(self, state: RolloutState, live: ServedVersion) -> None:
        try:
            stage = await resume(state, live, self._loader, self._journal, self.settings)
        finally:
            self._loading = None
        if stage is not None:
            self._exchange(stage)  # while the server stops too: aclose() closes its versions after this

    async def _remember(self) -> None:
        await self._journal.write(self._state)

    def _state(self) -> RolloutState | None:
        if self._asking.stage is None or self._origin is None:
            return None
        return state_of(self._asking.stage, self._origin)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
