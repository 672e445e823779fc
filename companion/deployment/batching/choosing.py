"""Which of the waiting requests ride in the next batch: a pure function of their lengths. numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.inference.throughput.cost import BatchCost
from companion.inference.throughput.grouping import by_cost, padded_length

__all__ = ["choose"]


def choose(lengths: Sequence[int], cost: BatchCost, *, padded_tokens: int, batch_size: int) -> list[int]:
    """Choose the next batch.

    All that wait are divided into the batches that together cost least (`by_cost`), and of these the one with
    the oldest request is next. So a text rides with neighbours of its own length, it rides alone where
    company would cost more than it saves, and nobody waits for ever: whatever comes later, the oldest goes
    first, and so each request moves up with every batch.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each waiting text, the oldest first; at least one.
    cost : BatchCost
    padded_tokens : int
        The most padded tokens of a batch with more than one text.
    batch_size : int
        The most texts of a batch.

    Returns
    -------
    list of int
        Positions in `lengths`, ascending; 0 is always one of them. More than one only if the batch costs less
        than its texts would cost one by one.
    """
    if len(lengths) == 1 or batch_size == 1:
        return [0]

    def within_budget(rows: NDArray[np.int64], longest: NDArray[np.int64]) -> NDArray[np.float64]:
        over = (rows > 1) & (rows * longest > padded_tokens)
        return np.where(over, np.inf, cost.seconds(rows, longest))

    # The youngest first: of texts of one length, the older ones then come last, and the last batch is full.
    last = len(lengths) - 1
    groups = by_cost(lengths[::-1], within_budget, batch_size=batch_size)
    chosen = next([last - place for place in group] for group in groups if last in group)
    widths: NDArray[Any] = np.array([padded_length(lengths[place]) for place in chosen])
    together, alone = cost.seconds(len(chosen), widths.max()), cost.seconds(1, widths).sum()
    return sorted(chosen) if together < alone else [0]
