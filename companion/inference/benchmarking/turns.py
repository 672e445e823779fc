"""The benchmark people get wrong, done right: one run, turns, warm candidates, and intervals for everything.

What goes wrong elsewhere, and what is done about it here:

- candidates are measured one after the other, while the machine changes: here they take turns, request by
  request, and are compared within each turn;
- the first runs are counted in, or a guessed number is left out: here all run until their times are stable;
- one counts its threads per session, another takes all cores: here all get the same number;
- a percentile is read off runs that cannot know it: here it is refused;
- a slow request delays the measurement of the next: `companion.inference.benchmarking.arrivals` counts from
  the timetable.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

from companion.data import load
from companion.inference.benchmarking.arrivals import drive
from companion.inference.benchmarking.plan import BenchmarkPlan
from companion.inference.benchmarking.report import (
    Benchmark,
    LatencyRow,
    MeasuredFolder,
    ThroughputRow,
    faster_than,
)
from companion.inference.benchmarking.sending import Requests, groups_by_length, sender
from companion.inference.benchmarking.warmup import Warmup, warm_up
from companion.inference.intervals import percentile
from companion.inference.loading import load_predictor
from companion.inference.predictor import Predictor
from companion.inference.timing import Timing, side_by_side
from companion.settings import get_settings, usable_cores

__all__ = ["benchmark", "benchmark_predictors"]

_SAMPLE = 600  # generated texts, where the caller brings none
_PER_GROUP = 4  # texts of each length in a block of the warm-up
_FLIPS = 1000  # texts whose labels are compared


def benchmark(
    folders: Sequence[Path],
    texts: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    *,
    plan: BenchmarkPlan | None = None,
    threads: int | None = None,
) -> Benchmark:
    """Measure how fast one or several folders answer, side by side.

    Parameters
    ----------
    folders : sequence of Path
        ONNX folders and model folders. The others are compared with the first.
    texts : sequence of str, optional
        As they are in use: latency depends on their lengths. Default: generated reviews.
    pairs : sequence of str, optional
        The second text of each, for a task on pairs.
    plan : BenchmarkPlan, optional
        What to measure.
    threads : int, optional
        For each candidate. Default: the settings' threads. With fewer threads than cores, texts are
        tokenized on one thread, too.

    Returns
    -------
    Benchmark

    Raises
    ------
    FileNotFoundError
        When a folder does not exist.
    ValueError
        When there are no folders, one is given twice or is damaged, or there are no texts.
    """
    folders = [Path(folder) for folder in folders]
    if not folders:
        raise ValueError("there are no folders, expected at least one ONNX folder or model folder")
    resolved = [folder.resolve() for folder in folders]
    for index, folder in enumerate(resolved):
        if folder in resolved[:index]:
            raise ValueError(f"{folders[index]} is given twice, expected different folders")
    if texts is None:
        texts, pairs = [example.text for example in load("sentiment").dev[:_SAMPLE]], None
    threads = threads or get_settings().threads
    with _tokenizer_threads(threads):
        predictors = {str(folder): load_predictor(folder, threads=threads) for folder in folders}
        found = benchmark_predictors(predictors, texts, pairs, plan=plan)
    sizes = [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in resolved]
    sized = [replace(item, bytes=size) for item, size in zip(found.candidates, sizes, strict=True)]
    return replace(found, candidates=tuple(sized), threads=threads)


def benchmark_predictors(
    predictors: Mapping[str, Predictor],
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    plan: BenchmarkPlan | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Benchmark:
    """Measure predictors that are open already; equal threads are the caller's business.

    Parameters
    ----------
    predictors : mapping of str to Predictor
    texts, pairs, plan
        As for `benchmark`.
    clock, sleep : callable
        Give the time in seconds, and wait for so many.

    Returns
    -------
    Benchmark

    Raises
    ------
    ValueError
        When there are no predictors or no texts.
    """
    if not predictors:
        raise ValueError("there are no predictors, expected at least one")
    plan = plan or BenchmarkPlan()
    groups = groups_by_length(texts, pairs, groups=plan.groups, seed=plan.seed)
    warm = _warmed(predictors, groups, clock)
    alone = [_latencies(predictors, group, plan, clock) for group in groups]
    batched = {size: _batches(predictors, groups, size, plan, clock) for size in plan.batch_sizes}
    first = next(iter(predictors))
    candidates = []
    for name, predictor in predictors.items():
        flips, reason = _flips(predictors[first], predictor, texts, pairs)
        driven = None
        if plan.rate is not None:
            driven = drive(
                predictor,
                texts,
                pairs,
                rate=plan.rate,
                requests=plan.runs,
                level=plan.level,
                clock=clock,
                sleep=sleep,
            )
        candidates.append(
            MeasuredFolder(
                name=name,
                bytes=None,
                labels=predictor.labels,
                warmup=warm[name],
                latency=_latency_rows(groups, alone, name, first, plan),
                throughput=_throughput_rows(batched, name, first, _texts_per_round(plan), plan.level),
                flips=None if name == first else flips,
                not_compared="(the first)" if name == first else reason,
                arrivals=driven,
            )
        )
    return Benchmark(tuple(candidates), len(texts), None, usable_cores(), plan.level)


def _warmed(
    predictors: Mapping[str, Predictor], groups: Sequence[Requests], clock: Callable[[], float]
) -> dict[str, Warmup]:
    """Send the same few texts of each length to all, one by one, again and again."""
    parts = [group.cycle(min(_PER_GROUP, len(group.texts))) for group in groups]
    texts = [text for part in parts for text in part.texts]
    pairs = None if groups[0].pairs is None else [pair for part in parts for pair in part.pairs or ()]
    runs = {name: _in_order(predictor, texts, pairs) for name, predictor in predictors.items()}
    return warm_up(runs, block=len(texts), clock=clock)


def _in_order(
    predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None
) -> Callable[[], object]:
    """Return a function that sends one text after the other, one each time."""
    send, numbers = sender(predictor, texts, pairs), count()
    return lambda: send(next(numbers))


def _latencies(
    predictors: Mapping[str, Predictor], group: Requests, plan: BenchmarkPlan, clock: Callable[[], float]
) -> dict[str, Timing]:
    """Send every text to each candidate in turn."""
    runs = {name: _in_order(predictor, group.texts, group.pairs) for name, predictor in predictors.items()}
    return side_by_side(runs, repeats=plan.runs, warmup=0, rotate=True, clock=clock)


def _batches(
    predictors: Mapping[str, Predictor],
    groups: Sequence[Requests],
    size: int,
    plan: BenchmarkPlan,
    clock: Callable[[], float],
) -> dict[str, Timing]:
    """Work through the same texts of all lengths, in batches."""
    total = _texts_per_round(plan)
    shares = [total * (i + 1) // len(groups) - total * i // len(groups) for i in range(len(groups))]
    parts = [group.cycle(share) for group, share in zip(groups, shares, strict=True)]
    texts = [text for part in parts for text in part.texts]
    pairs = None if groups[0].pairs is None else [pair for part in parts for pair in part.pairs or ()]
    runs = {name: partial(one.logits, texts, pairs, batch_size=size) for name, one in predictors.items()}
    warm_up(runs, at_most=6, clock=clock)
    return side_by_side(runs, repeats=plan.rounds, warmup=0, rotate=True, clock=clock)


def _texts_per_round(plan: BenchmarkPlan) -> int:
    return plan.batched_texts or max(64, 2 * max(plan.batch_sizes))


def _latency_rows(
    groups: Sequence[Requests],
    alone: Sequence[Mapping[str, Timing]],
    name: str,
    first: str,
    plan: BenchmarkPlan,
) -> tuple[LatencyRow, ...]:
    """Describe each group of lengths, and all together: the groups are of equal size, so that is the mix."""
    spans = [group.words for group in groups]
    timings = [(times[first], times[name]) for times in alone]
    if len(groups) > 1:
        joined = [Timing(tuple(s for pair in timings for s in pair[side].seconds)) for side in (0, 1)]
        timings.append((joined[0], joined[1]))
        spans.append((spans[0][0], spans[-1][1]))
    return tuple(
        LatencyRow(
            words=span,
            runs=len(own.seconds),
            percentiles=tuple(percentile(own.seconds, p, level=plan.level) for p in plan.percents),
            faster=None if name == first else faster_than(reference, own, level=plan.level),
            timing=own,
        )
        for span, (reference, own) in zip(spans, timings, strict=True)
    )


def _throughput_rows(
    batched: Mapping[int, Mapping[str, Timing]], name: str, first: str, texts: int, level: float
) -> tuple[ThroughputRow, ...]:
    rows = []
    for size, timings in batched.items():
        own = timings[name]
        rate, spread = own.rate(texts)
        faster = None if name == first else faster_than(timings[first], own, level=level)
        rows.append(ThroughputRow(size, len(own.seconds), rate, spread, faster, own))
    return tuple(rows)


def _flips(
    first: Predictor, other: Predictor, texts: Sequence[str], pairs: Sequence[str] | None
) -> tuple[int | None, str | None]:
    """Count the texts that get another label, or say why that cannot be compared."""
    if first.labels != other.labels:
        return None, "other labels"
    if first.is_regression or other.is_regression:
        return None, "a number, no labels"
    if first is other:
        return 0, None
    some, second = texts[:_FLIPS], None if pairs is None else pairs[:_FLIPS]
    chosen = [one.logits(some, second).argmax(axis=1) for one in (first, other)]
    return int((chosen[0] != chosen[1]).sum()), None


@contextmanager
def _tokenizer_threads(threads: int) -> Iterator[None]:
    """Keep the tokenizer, which would take all cores, from taking more than the candidates may."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if threads < usable_cores():
        os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
