"""Puts questions to the versions of a stage; no client sees an error that another version can prevent."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from companion.deployment.answering import Answer, Question
from companion.deployment.problems import NOT_READY, ProblemError
from companion.deployment.rollout.comparing import difference
from companion.deployment.rollout.copying import CopyRunner, QuestionCopy
from companion.deployment.rollout.routing import Caller, compared, copied, current_caller, to_candidate
from companion.deployment.rollout.settings import RolloutSettings
from companion.deployment.rollout.stages import Stage, Trial

__all__ = ["StagedAnswerer"]

logger = logging.getLogger("companion.deployment.rollout")

_BUSY, _LATE = (429, 503), 504

_ILL = frozenset({"not-ready", "model-failed", "stuck"})
"""Codes of refusals that no load explains."""


class StagedAnswerer:
    """An `Answerer` over the versions of a stage.

    Parameters
    ----------
    settings : RolloutSettings
    alarm : callable
        Told, once per trial, that a version must be taken back, and why. It exchanges `stage` at once.
    busy : callable, optional
        Whether the live version has something to do. Default: whether it is answering.
    clock, sleep : callable
        As `time.monotonic` and `asyncio.sleep`.

    Attributes
    ----------
    stage : Stage or None
        Exchange it to change who is asked; questions on their way end where they began, except that a
        candidate's answer which comes after its end is thrown away.
    copies : CopyRunner
    """

    def __init__(
        self,
        settings: RolloutSettings,
        *,
        alarm: Callable[[Trial, str], None],
        busy: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.stage: Stage | None = None
        self._settings, self._alarm, self._clock = settings, alarm, clock
        self._busy = busy or self._is_answering
        self.copies = CopyRunner(
            settings.copies, busy=self._busy, outcome=self._copy_ran, clock=clock, sleep=sleep
        )

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question.

        Raises
        ------
        ProblemError
            503 `not-ready` before a version is live, and what the live version raises.
        """
        stage, caller = self._current(), current_caller()
        trial, candidate = stage.trial, stage.candidate
        if trial is None or candidate is None:
            return await self._from_live(question, deadline)
        if to_candidate(stage.traffic, caller, question, candidate.name):
            compare = compared(self._settings.compare, caller, question, candidate.name)
            seconds = min(self._settings.candidate_s, (deadline - time.monotonic()) / 2)
            if self._may_try(trial, compare, seconds):
                return await self._from_candidate(trial, question, deadline, seconds, compare)
            trial.held_back += 1
        answer = await self._from_live(question, deadline)
        self._shadow(caller, question, answer)
        return answer

    def _current(self) -> Stage:
        if self.stage is None:
            raise ProblemError(NOT_READY, "Try again in a moment.", retry_after_s=1)
        return self.stage

    def _is_answering(self) -> bool:
        return self.stage is not None and self.stage.live.running > 0

    def _may_try(self, trial: Trial, compare: bool, seconds: float) -> bool:
        watched = not compare or trial.unwatched < self._settings.unwatched
        return watched and seconds >= self._settings.least_s

    async def _from_candidate(
        self, trial: Trial, question: Question, deadline: float, seconds: float, compare: bool
    ) -> Answer:
        trial.unwatched += compare
        waits = False
        started = self._clock()
        try:
            try:
                async with asyncio.timeout(seconds):
                    answer = await trial.version.answer(question, deadline=time.monotonic() + seconds)
            except Exception as error:
                return await self._instead(trial, question, deadline, error)
            stage = self.stage
            if stage is None or trial.version is stage.live:  # closed, or promoted meanwhile
                return answer
            if stage.trial is not trial:  # taken back meanwhile: its answers count no more
                return await self._from_live(question, deadline)
            trial.version.latency.add(self._clock() - started)
            trial.answered += 1
            self._judge(trial, error=False)
            if compare:
                copy = QuestionCopy(question, answer, stage.live, trial.version, self._clock())
                waits = self.copies.offer(copy)
            return answer
        finally:
            trial.unwatched -= compare and not waits

    async def _instead(self, trial: Trial, question: Question, deadline: float, error: Exception) -> Answer:
        """Let the live version answer what the candidate failed to.

        A late candidate is to blame at once. Otherwise it is to blame when the live version can answer, and
        not when it refused while the live version was busy as well.
        """
        late, excused = _status(error) == _LATE, self._is_excused(error)
        if late:
            self._judge(trial, error=True)
        answer = await self._from_live(question, deadline)
        trial.replaced += 1
        trial.excused += excused
        if trial.is_new(error):
            logger.warning(
                "candidate %s failed, version %s answered",
                trial.version.name,
                answer.model_version,
                exc_info=error,
            )
        if not late and not excused:
            self._judge(trial, error=True)
        return answer

    async def _from_live(self, question: Question, deadline: float) -> Answer:
        """Ask the live version; after a promotion also the one before, where the new one fails."""
        stage, started = self._current(), self._clock()
        try:
            answer = await stage.live.answer(question, deadline=deadline)
        except ProblemError:
            raise
        except Exception as error:
            now = self._current()
            other = now.previous if now.live is stage.live else now.live
            if other is None:
                raise
            answer = await other.answer(question, deadline=deadline)
            if stage.previous is not None and (trial := stage.trial) is not None:
                trial.replaced += 1
                if trial.is_new(error):
                    logger.warning(
                        "version %s failed, version %s answered", stage.live.name, other.name, exc_info=error
                    )
                self._judge(trial, error=True)
            return answer
        stage.live.latency.add(self._clock() - started)
        if stage.previous is not None and stage.trial is not None:
            stage.trial.answered += 1
            self._judge(stage.trial, error=False)
        return answer

    def _shadow(self, caller: Caller | None, question: Question, answer: Answer) -> None:
        stage = self.stage
        # After an exchange the answer may come from a version that is live no more.
        if stage is None or answer.model_version != stage.live.name:
            return
        candidate = stage.candidate
        if candidate is not None and copied(stage.traffic, caller, question, candidate.name):
            self.copies.offer(QuestionCopy(question, answer, candidate, candidate, self._clock()))

    def _copy_ran(self, copy: QuestionCopy, result: Answer | Exception, seconds: float) -> None:
        stage = self.stage
        if stage is None or stage.trial is None or stage.candidate is not copy.candidate:
            return
        trial = stage.trial
        if copy.is_shadow:
            trial.shadowed += 1
            if isinstance(result, Exception):
                if not self._is_excused(result):
                    self._judge(trial, error=True)
                return
            trial.shadow_latency.add(seconds)
            self._judge(trial, error=False)
        else:
            trial.unwatched -= 1
            if isinstance(result, Exception):
                trial.uncompared += 1
                return
        agrees = trial.agreement.add(difference(copy.given, result))
        if reason := trial.guard.compared(disagrees=not agrees):
            self._alarm(trial, reason)

    def _is_excused(self, error: Exception) -> bool:
        """Say whether a version may refuse: it is full, and the live version has enough to do as well."""
        if not isinstance(error, ProblemError) or error.status_code not in _BUSY:
            return False
        return error.problem.code not in _ILL and self._busy()

    def _judge(self, trial: Trial, *, error: bool) -> None:
        if reason := trial.guard.answered(error=error):
            self._alarm(trial, reason)


def _status(error: Exception) -> int:
    """Return the HTTP status that an error stands for."""
    if isinstance(error, TimeoutError):
        return _LATE
    return error.status_code if isinstance(error, ProblemError) else 500
