"""Who shares a batch: the server's own batcher with one function exchanged, in front of the same clients."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from companion.deployment.answering import Question
from companion.deployment.batching import waiting
from companion.deployment.batching.batcher import Batcher
from companion.deployment.batching.calibrating import warm_up
from companion.deployment.batching.choosing import choose
from companion.deployment.batching.limits import BatchingLimits
from companion.deployment.batching.model import ServedModel
from companion.inference.predictor import OnnxPredictor
from companion.inference.throughput.cost import BatchCost, OnlineCost
from companion.inference.throughput.grouping import padded_length
from companion.inference.timing import Timing, ratio, side_by_side

__all__ = ["CHOICES", "Choice", "batched", "first_come", "learning", "one_by_one"]

_PATIENCE_S = 600.0
"""Nobody is refused: every text is asked in every way."""

Choice = Callable[..., list[int]]
"""From the lengths of those who wait, as `choose`, to who rides next."""


def first_come(lengths: Sequence[int], cost: BatchCost, *, padded_tokens: int, batch_size: int) -> list[int]:
    """Take those who came first, whatever their lengths: what batchers do that do not look."""
    return list(range(min(len(lengths), batch_size)))


def one_by_one(lengths: Sequence[int], cost: BatchCost, *, padded_tokens: int, batch_size: int) -> list[int]:
    """Take the oldest alone."""
    return [0]


CHOICES: Mapping[str, Choice] = {
    "one by one": one_by_one,
    "first in, first out": first_come,
    "by length and cost": choose,
}
"""The first is what the others are compared with."""


def batched(
    folder: Path, texts: Sequence[str], *, clients: int = 32, batch_size: int = 16, repeats: int = 3
) -> dict[str, Any]:
    """Let clients ask a batcher, each the next text as soon as its last one is answered.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
        Each is asked once a round.
    clients : int
    batch_size : int
        The most texts of a batch.
    repeats : int
        Rounds; in each, all choices take turns.

    Returns
    -------
    dict
        Under ``"runs"`` for each of `CHOICES` its name, texts per second, the ratio to the first with its
        spread, the texts of a batch on average and the share of computed tokens that are no padding.
    """
    model = OnnxPredictor(folder, threads=1)
    start = warm_up(model, padded_tokens=BatchingLimits().padded_tokens)
    seen = {name: _Batches(model) for name in CHOICES}
    jobs = {
        name: partial(_round, seen[name], choice, start, texts, clients, batch_size)
        for name, choice in CHOICES.items()
    }
    timings = side_by_side(jobs, repeats=repeats, rotate=True, clock=time.perf_counter)
    first = next(iter(timings.values()))
    return {"runs": [_told(name, first, timing, len(texts), seen[name]) for name, timing in timings.items()]}


def _told(name: str, first: Timing, timing: Timing, texts: int, seen: _Batches) -> dict[str, Any]:
    faster, spread = ratio(first, timing)
    rows = sum(rows for rows, _, _ in seen.batches)
    computed = sum(rows * padded_length(longest) for rows, longest, _ in seen.batches)
    return {
        "name": name,
        "rate": timing.rate(texts)[0],
        "faster": faster,
        "spread": list(spread),
        "rows": rows / len(seen.batches),
        "efficiency": sum(tokens for _, _, tokens in seen.batches) / computed,
    }


class _Batches:
    """A model that notes the shape of every batch."""

    def __init__(self, model: OnnxPredictor) -> None:
        self._model = model
        self.batches: list[tuple[int, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, encodings: Sequence[Any]) -> Any:
        lengths = [len(encoding.ids) for encoding in encodings]
        self.batches.append((len(lengths), max(lengths), sum(lengths)))
        return self._model.run(encodings)


def _round(
    model: Any, choice: Choice, start: BatchCost, texts: Sequence[str], clients: int, batch_size: int
) -> None:
    with patch.object(waiting, "choose", choice):  # the one function by which the line decides
        # In a thread of its own: a notebook has an event loop already.
        limits = BatchingLimits(batch_size=batch_size, wait_s=_PATIENCE_S, stuck_after_s=2 * _PATIENCE_S)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _ask(model, start, texts, clients, limits)).result()


async def _ask(
    model: ServedModel, start: BatchCost, texts: Sequence[str], clients: int, limits: BatchingLimits
) -> None:
    batcher = Batcher(model, limits=limits, start=start)
    batcher.start()
    left = iter(texts)

    async def client() -> None:
        for text in left:
            await batcher.answer(Question(text), deadline=math.inf)

    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        await batcher.aclose()


def learning(
    folder: Path, texts: Sequence[str], *, batch_size: int = 4, wrong_by: float = 10.0
) -> dict[str, Any]:
    """Let the server's cost learn from batches, beginning far off.

    Parameters
    ----------
    folder : Path
        An exported model.
    texts : sequence of str
        Batches of one to `batch_size` of them, in their order.
    batch_size : int
    wrong_by : float
        The cost begins so many times too high.

    Returns
    -------
    dict
        ``"expected"`` and ``"real"``, seconds of each batch; the first was said before the batch ran.
        ``"cost"``: the three numbers in the end.
    """
    model = OnnxPredictor(folder, threads=1)
    honest = warm_up(model, padded_tokens=BatchingLimits().padded_tokens)
    wrong = BatchCost(*(wrong_by * (part or 0.0) for part in honest.to_dict().values()))
    online = OnlineCost(wrong)
    encodings, place, expected, real = model.encode(texts), 0, list[float](), list[float]()
    while place < len(encodings):
        batch = encodings[place : place + 1 + len(real) % batch_size]
        place += len(batch)
        width = padded_length(max(len(encoding.ids) for encoding in batch))
        expected.append(float(online.cost.seconds(len(batch), width)))
        begun = time.perf_counter()
        model.run(batch)
        real.append(time.perf_counter() - begun)
        online.update(len(batch), width, real[-1])
    return {"expected": expected, "real": real, "cost": online.cost.to_dict()}
