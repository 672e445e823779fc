"""Threads against processes: the same cores as one wide session, as narrow ones, and as processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from companion.inference.predictor import OnnxPredictor
from companion.inference.tables import ratio_with_spread, table
from companion.inference.throughput.grouping import by_budget, by_length
from companion.inference.throughput.traffic import mixed_texts
from companion.inference.throughput.workers import Assignment, Workers
from companion.inference.timing import Timing, ratio, side_by_side
from companion.settings import usable_cores

__all__ = ["Arrangement", "PlacedRun", "PlacementReport", "arrangements", "compare_placements"]


@dataclass(frozen=True)
class Arrangement:
    """How cores are shared out.

    Attributes
    ----------
    processes : int
    sessions : int
        In each process, each run by a thread of its own: onnxruntime lets go of Python's lock.
    threads : int
        That one session computes with.
    """

    processes: int
    sessions: int
    threads: int

    @property
    def name(self) -> str:
        """Such as ``"1 process x 2 sessions x 1 thread"``."""
        parts = (
            (self.processes, "process", "es"),
            (self.sessions, "session", "s"),
            (self.threads, "thread", "s"),
        )
        return " x ".join(f"{count} {noun}{plural if count > 1 else ''}" for count, noun, plural in parts)


def arrangements(cores: int | None = None) -> tuple[Arrangement, ...]:
    """Return ways to use all cores: one wide session, narrow sessions, processes, and halfway between them.

    Parameters
    ----------
    cores : int, optional
        Default: those that this process may use.

    Returns
    -------
    tuple of Arrangement
        Each computes with so many threads in all.

    Raises
    ------
    ValueError
        For less than one core.
    """
    cores = usable_cores() if cores is None else cores
    if cores < 1:
        raise ValueError(f"cores is {cores}, expected at least 1")
    shapes = [(1, 1, cores), (1, cores, 1), (cores, 1, 1)]
    if cores >= 4 and cores % 2 == 0:
        shapes += [(1, 2, cores // 2), (2, 1, cores // 2), (1, cores // 2, 2)]
    return tuple(dict.fromkeys(Arrangement(*shape) for shape in shapes))


@dataclass(frozen=True)
class PlacedRun:
    """All requests, worked off by one arrangement.

    Attributes
    ----------
    arrangement : Arrangement
    seconds, cpu_seconds : Timing
        One per round. CPU seconds are those of all its processes and threads.
    memory : int
        Resident bytes of all its processes, after the last round.
    faster : float
        Than the first arrangement, median of the rounds.
    spread : tuple of float
        Lowest and highest ratio of a round.
    """

    arrangement: Arrangement
    seconds: Timing
    cpu_seconds: Timing
    memory: int
    faster: float
    spread: tuple[float, float]


@dataclass(frozen=True)
class PlacementReport:
    """Several arrangements that took turns with the same requests.

    Attributes
    ----------
    runs : tuple of PlacedRun
        The first is what the others are compared with.
    texts, batches : int
        In a round.
    cores : int
        That this process may use.
    """

    runs: tuple[PlacedRun, ...]
    texts: int
    batches: int
    cores: int

    @property
    def fastest(self) -> PlacedRun:
        """The arrangement with the shortest median."""
        return min(self.runs, key=lambda run: run.seconds.median)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds, memory in bytes."""
        return {
            "texts": self.texts,
            "batches": self.batches,
            "cores": self.cores,
            "runs": [
                asdict(run)
                | {
                    "name": run.arrangement.name,
                    "texts_per_second": run.seconds.rate(self.texts)[0],
                    "texts_per_cpu_second": run.cpu_seconds.rate(self.texts)[0],
                    "seconds": list(run.seconds.seconds),
                    "cpu_seconds": list(run.cpu_seconds.seconds),
                    "spread": list(run.spread),
                }
                for run in self.runs
            ],
        }

    def text(self) -> str:
        """Write a table for a terminal."""
        rows = [
            {
                "arrangement": run.arrangement.name,
                "texts/s": f"{run.seconds.rate(self.texts)[0]:.0f}",
                "texts/CPU s": f"{run.cpu_seconds.rate(self.texts)[0]:.0f}",
                "MB": f"{run.memory / 1e6:.0f}",
                "times faster": ratio_with_spread(run.faster, run.spread),
            }
            for run in self.runs
        ]
        title = f"{self.texts} texts in {self.batches} batches, on {self.cores} cores"
        return table(title, rows, left={"arrangement"})


def compare_placements(
    folder: Path,
    texts: Sequence[str] | None = None,
    *,
    choices: Sequence[Arrangement] | None = None,
    budget: int | None = None,
    batch_size: int = 1,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> PlacementReport:
    """Work off the same batches with several arrangements of the same cores, in turns.

    Each arrangement runs in processes of its own, which stay open; whoever is free takes the next batch.

    Parameters
    ----------
    folder : Path
        An ONNX folder.
    texts : sequence of str, optional
        Default: 256 of `companion.inference.mixed_texts`.
    choices : sequence of Arrangement, optional
        Default: `arrangements()`.
    budget : int, optional
        Sort the texts and cut them by padded tokens. Default: by `batch_size`.
    batch_size : int
        Of the texts, sorted by length.
    repeats : int
        Rounds, at least 3.
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    PlacementReport

    Raises
    ------
    FileNotFoundError, ValueError
        When the folder is missing or damaged, there are no texts or no choices, or a number is out of range.
    RuntimeError
        When a process ends before its work does.
    """
    texts = list(mixed_texts(256) if texts is None else texts)
    choices = arrangements() if choices is None else tuple(choices)
    if not texts or not choices:
        raise ValueError(f"found {len(texts)} texts and {len(choices)} choices, expected some of each")
    lengths = [len(encoding.ids) for encoding in OnnxPredictor(Path(folder)).encode(texts)]
    if budget is None:
        groups = by_length(lengths, batch_size=batch_size)
    else:
        groups = by_budget(lengths, budget=budget)
    assignment = Assignment(Path(folder), tuple(texts), tuple(map(tuple, groups)))
    with ExitStack() as stack:
        open_ones = dict[str, Workers]()
        for choice in choices:
            open_ones[choice.name] = Workers(assignment, **asdict(choice))
            stack.callback(open_ones[choice.name].end)
        for workers in open_ones.values():
            workers.wait()
        timings = side_by_side(
            {name: workers.work for name, workers in open_ones.items()},
            repeats=repeats,
            rotate=True,
            clock=clock,
        )
        measured = {name: (workers.cpu_seconds, workers.memory) for name, workers in open_ones.items()}
    first = next(iter(timings.values()))
    runs = tuple(
        PlacedRun(
            choice,
            timings[choice.name],
            Timing(tuple(measured[choice.name][0][-repeats:])),
            measured[choice.name][1],
            *ratio(first, timings[choice.name]),
        )
        for choice in choices
    )
    return PlacementReport(runs, len(texts), len(groups), usable_cores())
