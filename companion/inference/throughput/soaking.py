"""Memory under requests of ever changing shape: whether it grows, how high, and what keeping it low costs.

What can grow with shapes is what the runtime keeps: blocks of its arena, and a plan for each shape. Both end
when every shape has come by. So the requests here are drawn from all shapes with the same probability, and
visit in minutes what an hour of traffic would.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from companion.inference.predictor import OnnxPredictor
from companion.inference.sessions import Memory
from companion.inference.tables import ratio_with_spread, table
from companion.inference.throughput.growth import Growth, MemorySample, growth_of
from companion.inference.throughput.traffic import mixed_texts
from companion.inference.timing import ratio, side_by_side

__all__ = ["MEMORIES", "Soak", "SoakReport", "soak"]

MEMORIES: Mapping[str, Memory] = {
    "arena, patterns": Memory(arena=True, pattern=True),
    "arena": Memory(arena=True, pattern=False),
    "arena that shrinks": Memory(arena=True, pattern=False, shrink=True),
    "no arena": Memory(arena=False, pattern=False),
}
"""Ways to manage memory. The first is onnxruntime's own default."""

_SAMPLES = 100


@dataclass(frozen=True)
class Soak:
    """One way to manage memory, under all requests, in a process of its own.

    Attributes
    ----------
    name : str
    memory : Memory
    opened : int
        Resident bytes before the first request.
    samples : tuple of MemorySample
    growth : Growth
    seconds : float
        Of all requests.
    faster : float
        Than the first way, with the same requests in turns, median of the rounds.
    spread : tuple of float
        Lowest and highest ratio of a round.
    """

    name: str
    memory: Memory
    opened: int
    samples: tuple[MemorySample, ...]
    growth: Growth
    seconds: float
    faster: float
    spread: tuple[float, float]

    @property
    def peak(self) -> int:
        """The most that was resident, in bytes."""
        return max(sample.bytes for sample in self.samples)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "name": self.name,
            "memory": asdict(self.memory),
            "opened": self.opened,
            "peak": self.peak,
            "last": self.samples[-1].bytes,
            "growth": self.growth.to_dict(),
            "seconds": self.seconds,
            "faster": self.faster,
            "spread": list(self.spread),
            "samples": [[sample.requests, sample.bytes] for sample in self.samples],
        }


@dataclass(frozen=True)
class SoakReport:
    """Several ways to manage memory, under the same requests.

    Attributes
    ----------
    soaks : tuple of Soak
        The first is what the speed of the others is compared with.
    requests : int
    shapes : int
        Different shapes of batches among them.
    """

    soaks: tuple[Soak, ...]
    requests: int
    shapes: int

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; memory in bytes."""
        return {
            "requests": self.requests,
            "shapes": self.shapes,
            "soaks": [found.to_dict() for found in self.soaks],
        }

    def text(self) -> str:
        """Write a table for a terminal."""
        rows = [
            {
                "memory": found.name,
                "MB at first": f"{found.opened / 1e6:.0f}",
                "at most": f"{found.peak / 1e6:.0f}",
                "at last": f"{found.samples[-1].bytes / 1e6:.0f}",
                "MB per 1,000 requests": "{:+.2f} ({:+.2f} to {:+.2f})".format(
                    *(1e-6 * part for part in asdict(found.growth.slope).values())
                ),
                "verdict": found.growth.verdict,
                "times faster": ratio_with_spread(found.faster, found.spread),
            }
            for found in self.soaks
        ]
        title = f"{self.requests:,} requests of {self.shapes:,} shapes"
        return table(title, rows, left={"memory", "verdict"})


def soak(
    folder: Path,
    memories: Mapping[str, Memory] | None = None,
    *,
    requests: int = 2_000,
    rows: int = 8,
    threads: int | None = None,
    tolerance: float = 1e6,
    repeats: int = 5,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> SoakReport:
    """Send requests of random shapes to one predictor after the other, and watch its process.

    Each request is a batch of 1 to `rows` texts of random words, whose longest has any length up to the
    model's, all with the same probability.

    Parameters
    ----------
    folder : Path
        An ONNX folder.
    memories : mapping of str to Memory, optional
        Default: `MEMORIES`.
    requests : int
        At least 100. Growth is judged on the last two thirds.
    rows : int
        The most texts of a request.
    threads : int, optional
        Default: the settings' threads.
    tolerance : float
        Bytes per thousand requests that are taken for no growth.
    repeats : int
        Rounds of the comparison of speed, at least 3.
    seed : int
        Of the requests.
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    SoakReport

    Raises
    ------
    FileNotFoundError, ValueError
        When the folder is missing or damaged, or a number is out of range.
    """
    folder, memories = Path(folder), MEMORIES if memories is None else memories
    if requests < _SAMPLES or rows < 1 or not memories:
        raise ValueError(
            f"found requests {requests}, rows {rows} and {len(memories)} memories, expected at least "
            f"{_SAMPLES}, 1 and 1"
        )
    predictors = {
        name: OnnxPredictor(folder, threads=threads, memory=memory) for name, memory in memories.items()
    }
    words = tuple(sorted({word for text in mixed_texts(1000) for word in text.split()}))
    longest = next(iter(predictors.values())).max_length
    plan = _Plan(folder, words, requests, rows, longest, seed)
    some = [plan.texts(number) for number in range(_SPEED_REQUESTS)]
    timings = side_by_side(
        {name: partial(_send, predictor, some) for name, predictor in predictors.items()},
        repeats=repeats,
        rotate=True,
        clock=clock,
    )
    del predictors
    first = next(iter(timings.values()))
    found = []
    for name, memory in memories.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            opened, samples, shapes, seconds = pool.submit(_watched, plan, memory, threads).result()
        growth = growth_of(samples, tolerance=tolerance)
        found.append(
            Soak(name, memory, opened, tuple(samples), growth, seconds, *ratio(first, timings[name]))
        )
    return SoakReport(tuple(found), requests, shapes)


_SPEED_REQUESTS = 24  # in one round of the comparison of speed


@dataclass(frozen=True)
class _Plan:
    """Requests of random shape: each is written when it is sent, and always the same."""

    folder: Path
    words: tuple[str, ...]
    requests: int
    rows: int
    longest: int
    seed: int

    def texts(self, number: int) -> list[str]:
        """Write a request."""
        rng = random.Random(f"companion/soak/{self.seed}/{number}")
        longest = rng.randint(1, self.longest)
        lengths = [longest, *(rng.randint(1, longest) for _ in range(rng.randrange(self.rows)))]
        return [" ".join(rng.choices(self.words, k=length)) for length in lengths]


def _watched(plan: _Plan, memory: Memory, threads: int | None) -> tuple[int, list[MemorySample], int, float]:
    """Send all requests in this process, and look at its memory a hundred times."""
    process = psutil.Process()
    predictor = OnnxPredictor(plan.folder, threads=threads, memory=memory)
    opened = int(process.memory_info().rss)
    every, samples, shapes = plan.requests // _SAMPLES, list[MemorySample](), set[tuple[int, ...]]()
    start = time.perf_counter()
    for number in range(1, plan.requests + 1):
        encodings = predictor.encode(plan.texts(number))
        shapes.add(predictor.feed(encodings)["input_ids"].shape)
        predictor.run(encodings)
        if number % every == 0:
            samples.append(MemorySample(number, int(process.memory_info().rss)))
    return opened, samples, len(shapes), time.perf_counter() - start


def _send(predictor: OnnxPredictor, requests: Sequence[Sequence[str]]) -> None:
    for texts in requests:
        predictor.run(predictor.encode(texts))
