"""Clients that ask without a pause, and check every answer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

KINDS = (
    "A warm, funny and generous film.",
    "ok",
    "Not once did it manage to surprise me.",
    "It is long, " * 20,
    "日本語 and <b>tags</b>\ttoo",
    "The hotel was awful, it was raining that day.",
)
TEXTS = tuple(f"{text} {number}" for number in range(40) for text in KINDS)
"""So many that a cache which forgets after a second has most of them no more when they come again."""


@dataclass
class Load:
    """What became of the requests of several clients.

    Attributes
    ----------
    answered : int
        Right answers.
    failures : list
        Everything else: another status, a broken connection, a wrong answer.
    """

    answered: int = 0
    failures: list[str] = field(default_factory=list)

    async def more(self, count: int) -> None:
        """Wait for so many further right answers."""
        until = self.answered + count
        async with asyncio.timeout(120):
            while self.answered < until and not self.failures:
                await asyncio.sleep(0.01)


class Clients:
    """Closed-loop clients of one address.

    Parameters
    ----------
    expected : dict
        The probabilities of each text, by label.
    """

    def __init__(self, expected: dict[str, dict[str, float]]) -> None:
        self.expected = expected

    @asynccontextmanager
    async def at(self, url: str, clients: int = 8) -> AsyncIterator[Load]:
        """Ask for the length of a block; what was begun is waited for at its end."""
        load, ended = Load(), asyncio.Event()
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            running = [asyncio.create_task(self._ask(http, load, ended, number)) for number in range(clients)]
            try:
                yield load
            finally:
                ended.set()
                await asyncio.gather(*running)

    async def _ask(self, http: httpx.AsyncClient, load: Load, ended: asyncio.Event, first: int) -> None:
        for text in itertools.islice(itertools.cycle(TEXTS), first * 17 % len(TEXTS), None):
            if ended.is_set():
                return
            try:
                answer = await http.post("/predict", json={"text": text})
            except httpx.HTTPError as error:
                load.failures.append(f"{type(error).__name__}: {error}")
                continue
            if answer.status_code != 200:
                load.failures.append(f"{answer.status_code}: {answer.text[:300]}")
            elif answer.json()["probabilities"] != self.expected[text]:
                load.failures.append(f"wrong: {answer.text[:300]}")
            else:
                load.answered += 1


@pytest.fixture(scope="session")
def clients(onnx_folder: Path) -> Clients:
    from companion.inference.predictor import OnnxPredictor

    predictor = OnnxPredictor(onnx_folder, threads=1)
    rows = {text: predictor.probabilities([text])[0] for text in TEXTS}
    return Clients({text: probabilities(predictor.labels, row) for text, row in rows.items()})


def probabilities(labels: tuple[str, ...], row: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return what a server is to say."""
    return {label: float(value) for label, value in zip(labels, row, strict=True)}


@pytest.fixture(scope="session")
def say(onnx_folder: Path) -> Callable[[str], dict[str, float]]:
    """Return what the model says to any text, as a server is to say it."""
    from companion.inference.predictor import OnnxPredictor

    predictor = OnnxPredictor(onnx_folder, threads=1)
    return lambda text: probabilities(predictor.labels, predictor.probabilities([text])[0])
