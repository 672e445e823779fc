"""Ways to group the same requests into batches, side by side: what neighbours of like length are worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Encoding

from companion.inference.predictor import OnnxPredictor
from companion.inference.tables import ratio_with_spread, table
from companion.inference.throughput.cost import BatchCost, fit_cost
from companion.inference.throughput.curves import batch_curve
from companion.inference.throughput.grouping import (
    Padding,
    by_arrival,
    by_budget,
    by_cost,
    by_length,
    in_windows,
    padding_of,
)
from companion.inference.throughput.traffic import mixed_texts
from companion.inference.timing import Timing, ratio, side_by_side

__all__ = ["GroupedRun", "GroupingReport", "compare_groupings"]

Grouping = Callable[[Sequence[int]], list[list[int]]]


@dataclass(frozen=True)
class GroupedRun:
    """All requests, grouped in one way.

    Attributes
    ----------
    name : str
    padding : Padding
    seconds, cpu_seconds : Timing
        Of all requests, one per round. CPU seconds are those of all threads together.
    faster : float
        Than the first way, median of the rounds.
    spread : tuple of float
        Lowest and highest ratio of a round.
    """

    name: str
    padding: Padding
    seconds: Timing
    cpu_seconds: Timing
    faster: float
    spread: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        rate, spread = self.seconds.rate(self.padding.texts)
        return {
            "name": self.name,
            "texts_per_second": rate,
            "texts_per_second_spread": list(spread),
            "texts_per_cpu_second": self.cpu_seconds.rate(self.padding.texts)[0],
            "faster": self.faster,
            "spread": list(self.spread),
            "padding": self.padding.to_dict(),
            "seconds": list(self.seconds.seconds),
        }


@dataclass(frozen=True)
class GroupingReport:
    """The same requests, grouped in several ways that took turns.

    Attributes
    ----------
    runs : tuple of GroupedRun
        The first is what the others are compared with.
    cost : BatchCost
        By which the cheapest grouping was found.
    """

    runs: tuple[GroupedRun, ...]
    cost: BatchCost

    def __getitem__(self, name: str) -> GroupedRun:
        """Return the way of that name; KeyError where there is none."""
        for run in self.runs:
            if run.name == name:
                return run
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {"cost": self.cost.to_dict(), "runs": [run.to_dict() for run in self.runs]}

    def text(self) -> str:
        """Write a table for a terminal."""
        rows = [
            {
                "grouping": run.name,
                "batches": str(run.padding.batches),
                "texts in one": f"{run.padding.rows:.1f}",
                "tokens not padding": f"{run.padding.efficiency:.0%}",
                "texts/s": f"{run.seconds.rate(run.padding.texts)[0]:.0f}",
                "texts/CPU s": f"{run.cpu_seconds.rate(run.padding.texts)[0]:.0f}",
                "times faster": ratio_with_spread(run.faster, run.spread),
            }
            for run in self.runs
        ]
        title = f"{self.runs[0].padding.texts} texts of mixed lengths"
        return table(title, rows, left={"grouping"})


def compare_groupings(
    predictor: OnnxPredictor,
    texts: Sequence[str] | None = None,
    *,
    groupings: Mapping[str, Grouping] | None = None,
    cost: BatchCost | None = None,
    window: int = 32,
    budget: int = 256,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> GroupingReport:
    """Run the same requests in batches grouped one way and another, in turns.

    Parameters
    ----------
    predictor : OnnxPredictor
    texts : sequence of str, optional
        In the order of their arrival. Default: 256 of `companion.inference.mixed_texts`.
    groupings : mapping of str to callable, optional
        From the token counts of all texts to groups of positions. Default: one by one; as they come, 8 and 32
        at a time; in windows, sorted and cut by a budget of tokens, and cut at the lowest cost; all sorted,
        and all cut at the lowest cost, which only a job without waiting users can do.
    cost : BatchCost, optional
        Default: fitted to batches measured here and now.
    window : int
        Texts that wait for each other.
    budget : int
        Padded tokens of a batch.
    repeats : int
        Rounds, at least 3.
    clock, cpu_clock : callable
        Give the time, and the processors' time of this process, in seconds.

    Returns
    -------
    GroupingReport

    Raises
    ------
    ValueError
        When there are no texts, or a number is out of range.
    """
    texts = mixed_texts(256) if texts is None else texts
    if not len(texts):
        raise ValueError("there are no texts, expected some to group into batches")
    cost = cost or fit_cost(_few_batches(predictor, clock)).cost
    encodings = predictor.encode(texts)
    lengths = [len(encoding.ids) for encoding in encodings]
    chosen = groupings or _usual(cost, window, budget)
    groups = {name: group(lengths) for name, group in chosen.items()}
    cpu: dict[str, list[float]] = {name: [] for name in groups}
    runs = {
        name: partial(_run, predictor, encodings, places, cpu[name], cpu_clock)
        for name, places in groups.items()
    }
    timings = side_by_side(runs, repeats=repeats, rotate=True, clock=clock)
    first = next(iter(timings.values()))
    return GroupingReport(
        tuple(
            GroupedRun(
                name,
                padding_of(lengths, groups[name]),
                timing,
                Timing(tuple(cpu[name][-repeats:])),
                *ratio(first, timing),
            )
            for name, timing in timings.items()
        ),
        cost,
    )


def _usual(cost: BatchCost, window: int, budget: int) -> dict[str, Grouping]:
    def sorted_in_window(lengths: Sequence[int]) -> list[list[int]]:
        return in_windows(lengths, partial(by_budget, budget=budget), window=window)

    def cheapest_in_window(lengths: Sequence[int]) -> list[list[int]]:
        return in_windows(lengths, partial(by_cost, cost=cost.seconds), window=window)

    return {
        "one by one": partial(by_arrival, batch_size=1),
        "as they come, 8": partial(by_arrival, batch_size=8),
        "as they come, 32": partial(by_arrival, batch_size=32),
        f"window of {window}, {budget} tokens": sorted_in_window,
        f"window of {window}, cheapest": cheapest_in_window,
        "all sorted, 32": partial(by_length, batch_size=32),
        "all, cheapest": partial(by_cost, cost=cost.seconds),
    }


def _few_batches(predictor: OnnxPredictor, clock: Callable[[], float]) -> Any:
    curve = batch_curve(predictor, lengths=(8, 32, 96), batch_sizes=(1, 4, 16, 32), repeats=3, clock=clock)
    return curve.timed_batches()


def _run(
    predictor: OnnxPredictor,
    encodings: Sequence[Encoding],
    groups: Sequence[Sequence[int]],
    cpu: list[float],
    cpu_clock: Callable[[], float],
) -> None:
    start = cpu_clock()
    for places in groups:
        predictor.run([encodings[place] for place in places])
    cpu.append(cpu_clock() - start)
