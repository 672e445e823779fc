"""Texts per second by batch size and length: where batches pay on this machine, and where they stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Encoding

from companion.inference.predictor import OnnxPredictor
from companion.inference.tables import table
from companion.inference.throughput.cost import TimedBatch
from companion.inference.throughput.grouping import padded_length
from companion.inference.throughput.traffic import mixed_texts
from companion.inference.timing import Timing, side_by_side

__all__ = ["BatchCurve", "CurvePoint", "batch_curve"]

_LEAST_TOKENS = 512
"""Padded tokens in one timing: a batch of one short text is over before a clock can tell its length."""


@dataclass(frozen=True)
class CurvePoint:
    """Batches of one shape.

    Attributes
    ----------
    tokens : int
        Of each text.
    batch_size : int
    seconds : Timing
        Of one batch, one per round.
    """

    tokens: int
    batch_size: int
    seconds: Timing

    @property
    def texts_per_second(self) -> float:
        """Median of the rounds."""
        return self.seconds.rate(self.batch_size)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        rate, spread = self.seconds.rate(self.batch_size)
        return {
            "tokens": self.tokens,
            "batch_size": self.batch_size,
            "texts_per_second": rate,
            "spread": list(spread),
            "seconds": list(self.seconds.seconds),
        }


@dataclass(frozen=True)
class BatchCurve:
    """Batches of many shapes, measured in turns.

    Attributes
    ----------
    points : tuple of CurvePoint
        By length, then by batch size.
    """

    points: tuple[CurvePoint, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths in tokens, shortest first."""
        return tuple(dict.fromkeys(point.tokens for point in self.points))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes, smallest first."""
        return tuple(dict.fromkeys(point.batch_size for point in self.points))

    def at(self, tokens: int, batch_size: int) -> CurvePoint:
        """Return one point.

        Raises
        ------
        KeyError
            When that shape was not measured.
        """
        for point in self.points:
            if (point.tokens, point.batch_size) == (tokens, batch_size):
                return point
        raise KeyError((tokens, batch_size))

    def best(self, tokens: int) -> CurvePoint:
        """Return the fastest batch size for texts of one length."""
        return max(
            (point for point in self.points if point.tokens == tokens),
            key=lambda point: point.texts_per_second,
        )

    def timed_batches(self) -> tuple[TimedBatch, ...]:
        """Return the median time of each shape, for `companion.inference.fit_cost`."""
        return tuple(
            TimedBatch(point.batch_size, padded_length(point.tokens), point.seconds.median)
            for point in self.points
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {"points": [point.to_dict() for point in self.points]}

    def text(self) -> str:
        """Write a table for a terminal: one line a length, one column a batch size."""
        rows = []
        for tokens in self.lengths:
            best = self.best(tokens)
            gain = best.texts_per_second / self.at(tokens, self.batch_sizes[0]).texts_per_second
            rows.append(
                {"tokens": str(tokens)}
                | {f"{size}": f"{self.at(tokens, size).texts_per_second:.0f}" for size in self.batch_sizes}
                | {"best": str(best.batch_size), f"against {self.batch_sizes[0]}": f"{gain:.2f}x"}
            )
        return table("Texts per second, by tokens of a text (down) and texts of a batch (across)", rows)


def batch_curve(
    predictor: OnnxPredictor,
    texts: Sequence[str] | None = None,
    *,
    lengths: Sequence[int] = (8, 16, 32, 64, 128),
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchCurve:
    """Time batches of texts of one length, for several lengths and batch sizes, in turns.

    What is timed is filling a batch and running it; the texts are tokenized before. All texts of a batch are
    equally long, so nothing is padded: this is what a batch can gain at best.

    Parameters
    ----------
    predictor : OnnxPredictor
    texts : sequence of str, optional
        Where the words come from. Default: generated reviews.
    lengths : sequence of int
        Tokens of a text, special ones included. Those beyond the predictor's `max_length` are left out.
    batch_sizes : sequence of int
    repeats : int
        Rounds, at least 3.
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    BatchCurve

    Raises
    ------
    ValueError
        When no length is within the predictor's, a number is below 1, or the texts are too short.
    """
    fitting = sorted({length for length in lengths if length <= predictor.max_length})
    sizes = sorted(set(batch_sizes))
    if not fitting or not sizes or fitting[0] < 1 or sizes[0] < 1:
        raise ValueError(
            f"lengths are {list(lengths)} and batch_sizes {list(batch_sizes)}, expected numbers of at least "
            f"1, and a length up to the model's {predictor.max_length}"
        )
    words = " ".join(texts if texts is not None else mixed_texts(100)).split()
    shapes = {(length, size): _batch(predictor, words, length, size) for length in fitting for size in sizes}
    runs = {shape: max(1, _LEAST_TOKENS // (shape[0] * shape[1])) for shape in shapes}
    timings = side_by_side(
        {
            f"{length} {size}": partial(_repeat, predictor, batch, runs[length, size])
            for (length, size), batch in shapes.items()
        },
        repeats=repeats,
        clock=clock,
    )
    return BatchCurve(
        tuple(
            CurvePoint(length, size, Timing(tuple(value / count for value in timing.seconds)))
            for ((length, size), count), timing in zip(runs.items(), timings.values(), strict=True)
        )
    )


def _batch(predictor: OnnxPredictor, words: Sequence[str], tokens: int, rows: int) -> list[Encoding]:
    """Encode texts that begin at different words, and cut each to its first tokens."""
    starts = [row * tokens % max(len(words), 1) for row in range(rows)]
    texts = [" ".join([*words[start:], *words[:start]][:tokens]) for start in starts]
    encodings = predictor.encode(texts)
    for encoding in encodings:
        if len(encoding.ids) < tokens:
            raise ValueError(
                f"the texts have {len(words)} words, too few for a text of {tokens} tokens: give more texts"
            )
        encoding.truncate(tokens)
    return encodings


def _repeat(predictor: OnnxPredictor, batch: Sequence[Encoding], times: int) -> None:
    for _ in range(times):
        predictor.run(batch)
