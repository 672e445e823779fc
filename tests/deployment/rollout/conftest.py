"""Versions that answer what a test wants, and rollouts over them on a clock that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from companion.deployment.answering import Answer, Question
from companion.deployment.rollout import Caller, Rollout, RolloutStatus, VersionFacts, calling

FACTS = VersionFacts("v1", ("negative", "positive"), False, "tokens")


def probability(text: str) -> float:
    """Give the live version's opinion: positive for texts with an even number of characters."""
    return 0.9 if len(text) % 2 == 0 else 0.2


@dataclass
class FakeVersion:
    """Answers by `opinion`; raises what `fails` gives; hangs while `gate` is not set."""

    facts: VersionFacts
    opinion: Callable[[str], float] = probability
    fails: Callable[[str], Exception | None] = lambda text: None
    gate: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)
    closed: bool = False

    async def answer(self, question: Question, *, deadline: float) -> Answer:
        assert not self.closed, "a version that was closed is asked"
        self.asked.append(question.text)
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        assert not self.closed, "closed while it answers"
        if (error := self.fails(question.text)) is not None:
            raise error
        value = self.opinion(question.text)
        values = (value,) if self.facts.is_regression else (1 - value, value)
        return Answer(values, self.facts.labels, self.facts.version)

    async def aclose(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


class World:
    """Folders with versions in them, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0
        self.busy = False
        self.facts: dict[str, VersionFacts | Exception] = {}
        self.made: dict[str, FakeVersion] = {}
        self.shape: dict[str, dict[str, Any]] = {}
        self.open_error: Exception | None = None
        for number in (1, 2, 3):
            self.put(f"m{number}", version=f"v{number}")

    def put(self, name: str, **changes: Any) -> Path:
        """Make a folder that says of itself what a live version's says, but for the changes."""
        self.facts[name] = replace(FACTS, **changes)
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name

    def inspect(self, folder: Path) -> VersionFacts:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder, expected an ONNX folder.")
        found = self.facts[folder.name]
        if isinstance(found, Exception):
            raise found
        return found

    async def open(self, folder: Path) -> FakeVersion:
        if self.open_error is not None:
            raise self.open_error
        found = self.facts[folder.name]
        assert isinstance(found, VersionFacts)
        self.made[folder.name] = FakeVersion(found, **self.shape.get(folder.name, {}))
        return self.made[folder.name]

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        await asyncio.sleep(0)

    def rollout(self, start: str = "m1", **keywords: Any) -> Rollout:
        keywords = {"busy": lambda: self.busy, **keywords}
        return Rollout(
            self.folder / start,
            self.open,
            inspect=self.inspect,
            clock=lambda: self.seconds,
            now=lambda: 0.0,
            sleep=self.sleep,
            **keywords,
        )


async def ask(rollout: Rollout, text: str, who: str = "someone", wish: Any = None, within: float = 60) -> str:
    """Ask one question; give the version that answered."""
    with calling(Caller(who, wish)):
        answer = await rollout.answer(Question(text), deadline=time.monotonic() + within)
    assert answer.values[1] == probability(text) or answer.model_version != "v1"
    return answer.model_version


async def until(condition: Callable[[], object]) -> None:
    """Let the other tasks go on until something holds."""
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come")


async def until_stage(rollout: Rollout, stage: str) -> RolloutStatus:
    """Wait until a rollout is in a stage, and all that follows is done."""
    await until(lambda: rollout.status().stage == stage)
    await rollout.settled()
    return rollout.status()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def tools() -> Any:
    """Return the helpers above: tests do not import one another.

    The last three look inside, because a whole status for every step of the event loop takes long.
    """
    return SimpleNamespace(
        ask=ask,
        until=until,
        until_stage=until_stage,
        probability=probability,
        trial=lambda rollout: rollout._asking.stage.trial,
        waiting=lambda rollout: rollout._asking.copies.waiting,
        dropped=lambda rollout: rollout._asking.copies.dropped,
    )
