"""What waiting work will take: learned from the batches that run, asked before a request is let in."""

from __future__ import annotations

import threading

from companion.deployment.batching.tokenizing import EncodingCost
from companion.inference.throughput.cost import BatchCost, OnlineCost
from companion.inference.throughput.grouping import padded_length

__all__ = ["Estimates"]

_REFRESH = 16  # batches between two looks at what was learned: a look costs as much as a token or two
_WEIGHT = 0.1  # of a new observation in a moving average
_BOUNDS = (0.05, 20.0)  # of the ratio of real to estimated time: one hiccup must not move it out of reach


class Estimates:
    """The cost of batches, of single texts, and of turning texts into tokens.

    Threads may call everything here at once.

    Parameters
    ----------
    start : BatchCost
        Such as the warm-up measured.
    max_length : int
        The most tokens of a text.

    Attributes
    ----------
    cost : BatchCost
        What batches cost; looked up anew every few batches.
    pace : float
        Real seconds of recent batches, divided by the estimated ones of their texts one by one: below 1 when
        riding together pays, above 1 while something else slows the machine down.
    """

    def __init__(self, start: BatchCost, *, max_length: int) -> None:
        self.cost = start
        self.pace = 1.0
        self._online = OnlineCost(start)
        self._max_length = max_length
        self._lock = threading.Lock()
        self._batches = 0
        self._tokens_per_character = 0.25
        self._encoding = EncodingCost()

    def tokens(self, characters: int) -> int:
        """Guess how many tokens a text has that nobody has looked into yet."""
        return max(1, min(self._max_length, 2 + round(characters * self._tokens_per_character)))

    def encoding_s(self, characters: int) -> float:
        """Return how long turning so many characters into tokens takes."""
        return self._encoding.seconds(characters)

    def batch_s(self, rows: int, tokens: int) -> float:
        """Return how long a batch takes whose longest text has so many tokens."""
        # Plain numbers: the arrays of `BatchCost.seconds` would cost more than all the rest of an admission.
        cost, area = self.cost, rows * padded_length(tokens)
        return cost.per_batch + area * (cost.per_token + area * cost.per_token_squared)

    def ran(self, rows: int, tokens: int, seconds: float, alone_s: float) -> None:
        """Learn from a batch.

        Parameters
        ----------
        rows, tokens : int
            Texts, and tokens of the longest.
        seconds : float
            How long it took.
        alone_s : float
            Sum of `batch_s` of each of its texts alone.
        """
        with self._lock:
            self._online.update(rows, padded_length(tokens), seconds)
            self._batches += 1
            if self._batches % _REFRESH == 0:
                learned = self._online.cost
                self.cost = BatchCost(
                    float(learned.per_batch), float(learned.per_token), float(learned.per_token_squared)
                )
            if alone_s > 0:
                ratio = min(max(seconds / alone_s, _BOUNDS[0]), _BOUNDS[1])
                self.pace += _WEIGHT * (ratio - self.pace)

    def encoded(self, characters: int, tokens: int, seconds: float, *, cut: bool) -> None:
        """Learn from texts that were turned into tokens.

        Parameters
        ----------
        characters, tokens : int
            Of all of them.
        seconds : float
            How long it took.
        cut : bool
            Whether any of them was longer than the model reads: its tokens then say nothing.
        """
        if not characters:
            return
        with self._lock:
            self._encoding.update(characters, seconds)
            if not cut:
                self._tokens_per_character += _WEIGHT * (tokens / characters - self._tokens_per_character)
