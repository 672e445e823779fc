"""Which texts share a batch: pure functions on token counts. Imports numpy alone.

A batch is as wide as its longest text, and every shorter one is filled up with padding that is computed like
words. So the choice of neighbours decides how much of the work is for nothing. All functions here return
groups of positions, each position exactly once; a predictor's answers then go back to those positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MULTIPLE",
    "CostOfBatches",
    "Padding",
    "by_arrival",
    "by_budget",
    "by_cost",
    "by_length",
    "in_windows",
    "padded_length",
    "padding_of",
]

MULTIPLE = 8
"""Lengths are padded to a multiple of this: few shapes, and sums in one order whatever the batch."""

CostOfBatches = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]
"""From rows and padded lengths of batches, arrays of one shape, to what each batch costs."""


def padded_length(tokens: int, multiple: int = MULTIPLE) -> int:
    """Return how wide a batch gets whose longest text has so many tokens."""
    return -(-tokens // multiple) * multiple


def by_arrival(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Group texts as they came: first in, first out.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text.
    batch_size : int
        Texts in a batch; only the last has fewer.

    Returns
    -------
    list of list of int
        Positions.

    Raises
    ------
    ValueError
        For a batch size below 1.
    """
    return _cut(list(range(len(lengths))), batch_size)


def by_length(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Group texts of like length: sorted, the longest first, then cut.

    Parameters
    ----------
    lengths, batch_size
        As for `by_arrival`.

    Returns
    -------
    list of list of int
        Positions. Texts of equal length keep their order.

    Raises
    ------
    ValueError
        For a batch size below 1.
    """
    return _cut(_longest_first(lengths), batch_size)


def by_budget(
    lengths: Sequence[int], *, budget: int, batch_size: int | None = None, multiple: int = MULTIPLE
) -> list[list[int]]:
    """Group texts of like length into batches of about equal work: many short ones, or few long ones.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text.
    budget : int
        The most padded tokens of a batch: its rows times its padded length. A text that alone has more is a
        batch of its own.
    batch_size : int, optional
        The most texts of a batch.
    multiple : int
        As for `padded_length`.

    Returns
    -------
    list of list of int
        Positions, the longest texts first.

    Raises
    ------
    ValueError
        For a budget or a batch size below 1.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}, expected at least 1 token")
    _check_batch_size(batch_size)
    order, groups, start = _longest_first(lengths), list[list[int]](), 0
    while start < len(order):
        width = max(padded_length(lengths[order[start]], multiple), 1)
        rows = max(1, min(budget // width, batch_size or len(order)))
        groups.append(order[start : start + rows])
        start += rows
    return groups


def by_cost(
    lengths: Sequence[int], cost: CostOfBatches, *, batch_size: int = 64, multiple: int = MULTIPLE
) -> list[list[int]]:
    """Cut the texts, sorted by length, such that all batches together cost least.

    Every batch has a fixed cost, which speaks for few batches, and pays for its padding, which speaks for
    many. Of all ways to cut the sorted texts this finds the cheapest, by dynamic programming: the best way to
    cut the first `j` texts ends with a last batch of some `r` rows, after the best way to cut the first
    `j - r`.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text.
    cost : callable
        What batches cost, from their rows and their padded lengths; two arrays of one shape in, one out. Such
        as `companion.inference.BatchCost.seconds`.
    batch_size : int
        The most texts of a batch. Time and memory are proportional to it and to the number of texts.
    multiple : int
        As for `padded_length`.

    Returns
    -------
    list of list of int
        Positions, the shortest texts first.

    Raises
    ------
    ValueError
        For a batch size below 1.
    """
    _check_batch_size(batch_size)
    total = len(lengths)
    if not total:
        return []
    most = min(batch_size, total)
    order = sorted(range(total), key=lengths.__getitem__)
    widths = np.array([padded_length(lengths[place], multiple) for place in order], dtype=np.int64)
    rows = np.arange(most, 0, -1)
    # One row for each text that may end a batch, one column for each size of that batch, the largest first.
    sizes = np.empty((total, most), dtype=np.int64)
    longest = np.empty_like(sizes)
    sizes[:], longest[:] = rows, widths[:, None]
    costs = cost(sizes, longest).tolist()
    # The cost of the first j texts, at most - 1 + j; before the first text there is nothing to cut. Lists and
    # no arrays: a server does this for every batch, and an array's price is that of a hundred numbers.
    cheapest = [math.inf] * (most - 1) + [0.0]
    chosen = list[int]()
    for end in range(total):
        candidates = list(map(add, cheapest[end:], costs[end]))
        lowest = min(candidates)
        cheapest.append(lowest)
        chosen.append(most - candidates.index(lowest))
    groups, end = list[list[int]](), total
    while end:
        start = end - chosen[end - 1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


def in_windows(
    lengths: Sequence[int], group: Callable[[Sequence[int]], list[list[int]]], *, window: int
) -> list[list[int]]:
    """Apply a grouping to so many texts at a time: a server cannot sort what has not come yet.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text, in the order of arrival.
    group : callable
        From the lengths in a window to groups of their positions.
    window : int

    Returns
    -------
    list of list of int
        Positions in `lengths`, one window after the other.

    Raises
    ------
    ValueError
        For a window below 1.
    """
    if window < 1:
        raise ValueError(f"window is {window}, expected at least 1 text")
    return [
        [start + place for place in places]
        for start in range(0, len(lengths), window)
        for places in group(lengths[start : start + window])
    ]


@dataclass(frozen=True)
class Padding:
    """How much of the work in some batches is for texts, and how much for nothing.

    Attributes
    ----------
    texts, batches : int
    tokens : int
        Of the texts.
    padded_tokens : int
        That are computed: rows times padded length, over all batches.
    largest : int
        Padded tokens of the largest batch.
    """

    texts: int
    batches: int
    tokens: int
    padded_tokens: int
    largest: int

    @property
    def efficiency(self) -> float:
        """Share of the computed tokens that are a text's."""
        return self.tokens / self.padded_tokens if self.padded_tokens else 1.0

    @property
    def rows(self) -> float:
        """Texts in a batch, on average."""
        return self.texts / self.batches if self.batches else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self) | {"efficiency": self.efficiency, "rows": self.rows}


def padding_of(
    lengths: Sequence[int], groups: Sequence[Sequence[int]], *, multiple: int = MULTIPLE
) -> Padding:
    """Count the padding of groups.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text.
    groups : sequence of sequence of int
        Positions in `lengths`.
    multiple : int
        As for `padded_length`.

    Returns
    -------
    Padding
    """
    areas = [len(group) * padded_length(max(lengths[p] for p in group), multiple) for group in groups]
    return Padding(
        texts=sum(map(len, groups)),
        batches=len(groups),
        tokens=sum(lengths[place] for group in groups for place in group),
        padded_tokens=sum(areas),
        largest=max(areas, default=0),
    )


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda place: -lengths[place])


def _cut(order: list[int], batch_size: int) -> list[list[int]]:
    _check_batch_size(batch_size)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _check_batch_size(batch_size: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
