"""Runs a model on requests: their tokens first, then batches, and each request's answer or error apart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from companion.deployment.answering import Answer
from companion.deployment.batching.refusals import too_late
from companion.deployment.observing import ServingObserver, Unobserved
from companion.inference.predictor import probabilities_of
from companion.inference.throughput.grouping import padded_length

if TYPE_CHECKING:
    from companion.deployment.batching.estimating import Estimates
    from companion.deployment.batching.model import ServedModel
    from companion.deployment.batching.waiter import Waiter

__all__ = ["Runner", "Settled", "Tokens"]

Settled = tuple["Waiter", Answer | Exception]
"""A request, and what became of it."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text, and nothing else.

    What a tokenizer returns also holds every token that was cut off, as text and with its place: for a text
    of 100,000 characters megabytes, for as long as the request waits.
    """

    ids: Sequence[int]
    type_ids: Sequence[int]


class Runner:
    """One model's side of the batcher. Several threads use it at once.

    Parameters
    ----------
    model : ServedModel
    estimates : Estimates
        Learns from everything that runs.
    observer : ServingObserver, optional
        Told from the workers' threads.
    clock : callable
        That of the deadlines.
    stopwatch : callable
        Seconds, to measure with.
    """

    def __init__(
        self,
        model: ServedModel,
        estimates: Estimates,
        *,
        observer: ServingObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._estimates = estimates
        self._observer = observer or Unobserved()
        self._clock = clock
        self._stopwatch = stopwatch

    def encode(self, waiters: Sequence[Waiter]) -> list[Settled]:
        """Turn requests into tokens: fills in `encoding` and `tokens` of each.

        Parameters
        ----------
        waiters : sequence of Waiter

        Returns
        -------
        list of Settled
            The requests of which the tokenizer can make nothing. They do not disturb the others.
        """
        live = [waiter for waiter in waiters if not waiter.abandoned]
        singles = [waiter for waiter in live if waiter.question.pair is None]
        pairs = [waiter for waiter in live if waiter.question.pair is not None]
        return [outcome for group in (singles, pairs) if group for outcome in self._encode(group)]

    def run(self, waiters: Sequence[Waiter], step: Callable[[float], None]) -> Iterator[list[Settled]]:
        """Run requests as one batch; should that fail, each by itself, so that one fails alone.

        Parameters
        ----------
        waiters : sequence of Waiter
            With their tokens.
        step : callable
            Called with the estimated seconds before each run.

        Yields
        ------
        list of Settled
            As soon as it is known. Nobody who left, and nobody twice.
        """
        live = [waiter for waiter in waiters if not waiter.abandoned]
        if not live:
            return
        now = self._clock()
        for waiter in live:
            self._observer.waited(now - waiter.arrived)
        outcomes = self._try(live, step)
        if len(outcomes) == len(live):
            yield outcomes
            return
        self._observer.event("batch-retried")
        for waiter in live:
            if waiter.abandoned:
                continue
            if waiter.deadline <= self._clock():
                yield [(waiter, too_late())]
            else:
                yield self._try([waiter], step)

    def _try(self, waiters: Sequence[Waiter], step: Callable[[float], None]) -> list[Settled]:
        """Run a batch. Should it fail, the outcome of one request is known, and that of several is empty."""
        try:
            return self._run_together(waiters, step)
        except BaseException as error:
            return [(waiters[0], _plain(error))] if len(waiters) == 1 else []

    def _encode(self, waiters: Sequence[Waiter]) -> list[Settled]:
        texts = [waiter.question.text for waiter in waiters]
        pairs = [waiter.question.pair for waiter in waiters if waiter.question.pair is not None]
        start = self._stopwatch()
        try:
            encodings = self._model.encode(texts, pairs or None)
            found = [Tokens(encoding.ids, encoding.type_ids) for encoding in encodings]
            if len(found) != len(waiters):
                raise RuntimeError(f"{len(found)} texts came back encoded, expected {len(waiters)}")
        except BaseException as error:
            if len(waiters) == 1:
                return [(waiters[0], _plain(error))]
            return [outcome for waiter in waiters for outcome in self._encode([waiter])]
        seconds = self._stopwatch() - start
        for waiter, tokens in zip(waiters, found, strict=True):
            waiter.tokens = max(1, len(tokens.ids))
            waiter.encoding = tokens
        self._estimates.encoded(
            sum(waiter.characters for waiter in waiters),
            sum(waiter.tokens for waiter in waiters),
            seconds,
            cut=any(waiter.tokens >= self._model.max_length for waiter in waiters),
        )
        return []

    def _run_together(self, waiters: Sequence[Waiter], step: Callable[[float], None]) -> list[Settled]:
        encodings = [waiter.encoding for waiter in waiters if waiter.encoding is not None]
        longest = max(waiter.tokens for waiter in waiters)
        step(self._estimates.batch_s(len(waiters), longest))
        start = self._stopwatch()
        logits = self._model.run(encodings)
        seconds = self._stopwatch() - start
        if len(logits) != len(waiters):
            raise RuntimeError(f"the model gave {len(logits)} rows, expected {len(waiters)}, one per text")
        outcomes = list(zip(waiters, self._answers(logits), strict=True))
        alone_s = sum(self._estimates.batch_s(1, waiter.tokens) for waiter in waiters)
        self._estimates.ran(len(waiters), longest, seconds, alone_s)
        self._observer.batch(
            texts=len(waiters),
            tokens=sum(waiter.tokens for waiter in waiters),
            padded_tokens=len(waiters) * padded_length(longest),
            seconds=seconds,
        )
        return outcomes

    def _answers(self, logits: Any) -> Iterator[Answer | Exception]:
        # All rows at once: each is exactly what the predictor makes of that text alone, down to the last bit.
        model = self._model
        labels, version = () if model.is_regression else model.labels, model.manifest.model_version
        rows = logits if model.is_regression else probabilities_of(logits, is_regression=False)
        for values in map(tuple, rows.tolist()):
            if all(map(math.isfinite, values)):
                yield Answer(values, labels, version)
            else:
                yield RuntimeError(f"the model gave {values}, expected finite numbers")


def _plain(error: BaseException) -> Exception:
    """Make an exception that a coroutine may raise of whatever a library threw, such as a panic."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"the model failed with {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
