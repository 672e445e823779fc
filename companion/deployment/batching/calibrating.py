"""The first runs of a model: whether it answers at all, and what its batches cost here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from companion.deployment.batching.batcher import GUESS
from companion.deployment.batching.running import Tokens
from companion.inference.throughput.cost import BatchCost, TimedBatch, fit_cost
from companion.inference.throughput.grouping import padded_length

if TYPE_CHECKING:
    from companion.deployment.batching.model import ServedModel

__all__ = ["WARM_UP", "warm_up"]

WARM_UP = "The first run is slower than the others."
"""The text of the first runs."""

_SHAPES = ((1, 16), (4, 32), (1, 64), (8, 16), (1, 32), (4, 64), (16, 32), (1, 128), (8, 64))
"""Rows and tokens of the batches that are timed: small ones first, so that a slow model is not late."""


def warm_up(
    model: ServedModel,
    *,
    padded_tokens: int,
    limit_s: float = 0.4,
    stopwatch: Callable[[], float] = time.perf_counter,
) -> BatchCost:
    """Run a model a few times.

    The very first run allocates memory and may fail where loading did not: no client should meet it.

    Parameters
    ----------
    model : ServedModel
    padded_tokens : int
        No batch is timed that has more.
    limit_s : float
        No further batch is timed after so many seconds.
    stopwatch : callable
        Seconds, to measure with.

    Returns
    -------
    BatchCost
        Fitted to the measured batches; a guess, scaled to what was measured, when these were too few.

    Raises
    ------
    ValueError
        When the model does not give one number per label.
    """
    (encoding,) = model.encode([WARM_UP])
    row = model.run([encoding])[0]
    expected = 1 if model.is_regression else len(model.labels)
    if len(row) != expected:
        raise ValueError(
            f"the model gives {len(row)} numbers a text, expected {expected}, one per label: export it again."
        )
    measured: list[TimedBatch] = []
    begin = stopwatch()
    for rows, length in _SHAPES:
        length = min(length, model.max_length)
        if rows * padded_length(length) > padded_tokens:
            continue
        batch = [_stretched(list(encoding.ids), length)] * rows
        model.run(batch)  # the first run of a shape makes a plan for its memory
        start = stopwatch()
        model.run(batch)
        seconds = stopwatch() - start
        if seconds > 0:
            measured.append(TimedBatch(rows, padded_length(length), seconds))
        if stopwatch() - begin > limit_s:
            break
    return _cost(measured)


def _stretched(ids: list[int], length: int) -> Tokens:
    """Repeat what is between the first and the last token, such as [CLS] and [SEP], up to a length."""
    ids = ids or [0]
    middle = ids[1:-1] or ids
    ids = (ids[:1] + middle * length)[: length - 1] + ids[-1:]
    return Tokens(ids[:length], [0] * length)


def _cost(measured: list[TimedBatch]) -> BatchCost:
    if len({batch.rows * batch.longest for batch in measured}) >= 3:
        found = fit_cost(measured).cost
        if found.per_token > 0:
            return found
    guessed = [float(GUESS.seconds(batch.rows, batch.longest)) for batch in measured]
    scale = sum(batch.seconds for batch in measured) / sum(guessed) if measured else 1.0
    return BatchCost(GUESS.per_batch * scale, GUESS.per_token * scale, GUESS.per_token_squared * scale)
