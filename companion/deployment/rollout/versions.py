"""One loaded version: how it comes into the process, how it is asked, how it leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import anyio.to_thread

from companion.deployment.answering import Answer, Question
from companion.deployment.problems import ProblemError
from companion.deployment.rollout.comparing import fault
from companion.deployment.rollout.inspecting import VersionFacts, why_unfit
from companion.deployment.rollout.timing import LatencyWindow

__all__ = ["BackgroundVersion", "BadAnswerError", "Loader", "RefusedVersionError", "ServedVersion", "Version"]

logger = logging.getLogger("companion.deployment.rollout")

_TRIALS = (
    Question("The first run is slower than the others."),
    Question(
        "Not bad, but not good either: a long sentence, with commas; and (in parentheses) with more. " * 8
    ),
)
"""What a version must answer before a client asks it: short, and longer than most models read."""


class Version(Protocol):
    """A model that answers: what a factory makes of a folder."""

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        """Answer one question: see `companion.deployment.answering.Answerer`."""

    async def aclose(self) -> None:
        """Free what it holds. Nothing is asked afterwards."""


@runtime_checkable
class BackgroundVersion(Version, Protocol):
    """A version that can also answer at low priority, for example by threads with a higher niceness."""

    async def answer_in_background(self, question: Question, *, deadline: float) -> Answer:
        """Answer a question that no client waits for."""


Factory = Callable[[Path], Awaitable[Version]]
"""Opens a folder. It must not block the event loop: what takes time belongs into a thread."""

Inspect = Callable[[Path], VersionFacts]
"""Reads a folder's description of itself; called in a thread."""


class RefusedVersionError(ValueError):
    """A folder that cannot be used; the message says why and what to do."""


class BadAnswerError(RuntimeError):
    """A version gave something that is no answer."""


class ServedVersion:
    """A version in this process.

    Parameters
    ----------
    version : Version
    folder : Path
        Where it came from.
    facts : VersionFacts
    """

    def __init__(self, version: Version, folder: Path, facts: VersionFacts) -> None:
        self.folder = folder
        self.facts = facts
        self.opened = version
        """What the factory made."""
        self.running = 0
        """Questions that it is answering now."""
        self.latency = LatencyWindow()
        """Of the answers that clients got from it."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def name(self) -> str:
        """The version's name in answers."""
        return self.facts.version

    async def answer(self, question: Question, *, deadline: float, in_background: bool = False) -> Answer:
        """Answer one question.

        Parameters
        ----------
        question : Question
        deadline : float
            By `time.monotonic`.
        in_background : bool
            Whether nobody waits for it: answered at low priority by a version that can.

        Raises
        ------
        BadAnswerError
            When what came is no answer: other labels, no probabilities, numbers that are not finite.
        """
        ask = self.opened.answer
        if in_background and isinstance(self.opened, BackgroundVersion):
            ask = self.opened.answer_in_background
        self.running += 1
        self._idle.clear()
        try:
            answer = await ask(question, deadline=deadline)
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()
        if answer.model_version != self.name:
            raise BadAnswerError(f"version {self.name} answered as version {answer.model_version}")
        if problem := fault(answer, self.facts.labels):
            raise BadAnswerError(f"version {self.name} gave no answer: {problem}")
        return answer

    async def aclose(self, grace_s: float) -> None:
        """Let it finish what it was asked, then close it.

        Parameters
        ----------
        grace_s : float
            Longest wait for that, in seconds.
        """
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("version %s is closed while it answers %d questions", self.name, self.running)
        try:
            await self.opened.aclose()
        except Exception:
            logger.exception("version %s did not close well", self.name)


@dataclass(frozen=True)
class Loader:
    """Brings folders into the process, or says why not.

    Parameters
    ----------
    factory : Factory
    inspect : Inspect
    root : Path, optional
        The only folder from below which versions are loaded.
    trial_s : float
        Longest time, in seconds, for each answer that a version has to give first.
    """

    factory: Factory
    inspect: Inspect
    root: Path | None = None
    trial_s: float = 30.0

    async def facts(self, folder: Path) -> tuple[Path, VersionFacts]:
        """Look at a folder without opening it; return its full path, too.

        Raises
        ------
        RefusedVersionError
            When it is no exported model, or lies where it must not.
        """
        place = await anyio.to_thread.run_sync(self._resolve, folder)
        try:
            return place, await anyio.to_thread.run_sync(self.inspect, place)
        except Exception as error:
            raise _refusal(place, error) from error

    async def load(
        self,
        folder: Path,
        *,
        live: VersionFacts | None = None,
        other_tokenizer: bool = False,
        expected: VersionFacts | None = None,
    ) -> ServedVersion:
        """Load a version and put trial questions to it.

        Parameters
        ----------
        folder : Path
        live : VersionFacts, optional
            The version whose place it must be able to take.
        other_tokenizer : bool
            Whether its tokenizer may differ.
        expected : VersionFacts, optional
            What the folder held when it was last looked at.

        Returns
        -------
        ServedVersion

        Raises
        ------
        RefusedVersionError
            When it cannot be used. Nothing of it stays.
        """
        place, facts = await self.facts(folder)
        if expected is not None and facts != expected:
            raise RefusedVersionError(
                f"{place} was refused: it holds version {facts.version}, expected version {expected.version} "
                "as it was: another model was written there."
            )
        if live is not None and (reason := why_unfit(facts, live, other_tokenizer=other_tokenizer)):
            raise RefusedVersionError(f"{place} was refused: {reason}.")
        try:
            version = await self.factory(place)
        except Exception as error:
            raise _refusal(place, error) from error
        served = ServedVersion(version, place, facts)
        try:
            for question in _TRIALS:
                async with asyncio.timeout(self.trial_s):
                    await served.answer(question, deadline=time.monotonic() + self.trial_s)
        except BaseException as error:
            await served.aclose(0)
            if not isinstance(error, Exception):
                raise
            raise _refusal(place, error) from error
        return served

    def _resolve(self, folder: Path) -> Path:
        try:
            place = Path(folder).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:  # no such user, a loop of links, a NUL character
            raise RefusedVersionError(f"{str(folder)!r} was refused: it is no path ({error}).") from None
        if self.root is not None and not place.is_relative_to(self.root.resolve()):
            raise RefusedVersionError(
                f"{place} was refused: it is not below {self.root.resolve()}, where the versions are."
            )
        return place


def _refusal(folder: Path, error: Exception) -> RefusedVersionError:
    """Say why a folder cannot be used; what no one foresaw goes into the log with its traceback."""
    if isinstance(error, TimeoutError):
        return RefusedVersionError(f"{folder} was refused: it did not answer a trial question in time.")
    if isinstance(error, ProblemError):
        return RefusedVersionError(f"{folder} was refused: asked a trial question, it said: {error.detail}")
    if not isinstance(error, OSError | ValueError | BadAnswerError):
        logger.error("version in %s cannot be used", folder, exc_info=error)
    return RefusedVersionError(
        f"{folder} was refused: {' '.join(str(error).split()) or type(error).__name__}"
    )
