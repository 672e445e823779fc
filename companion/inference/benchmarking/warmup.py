"""Runs until the times stop falling: first runs load pages, size arenas and compile kernels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["STABLE_BLOCKS", "Warmup", "warm_up"]

STABLE_BLOCKS = 3
"""So many blocks have to agree."""


@dataclass(frozen=True)
class Warmup:
    """How a candidate was warmed up.

    Attributes
    ----------
    blocks : int
        How many blocks of runs there were.
    stable : bool
        Whether the medians of its last `STABLE_BLOCKS` blocks agreed. If not, the bound on the blocks ended
        it: what is measured next may still hold some of the warm-up, or the machine is busy otherwise.
    variation : float
        Of those medians: the largest over the smallest, minus 1.
    seconds : float
        All runs together.
    """

    blocks: int
    stable: bool
    variation: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the attributes by their names."""
        return asdict(self)


def warm_up(
    candidates: Mapping[str, Callable[[], object]],
    *,
    block: int = 1,
    tolerance: float = 0.1,
    at_most: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Warmup]:
    """Run the candidates in turns until the times of each are stable.

    A candidate is stable when the medians of its last three blocks of runs differ by at most `tolerance`: a
    median, so that a single run that the system interrupts does not count. All go on until all are, so that
    all are equally warm when they are measured. A candidate that stays equally slow for three blocks, and
    only then gets faster, is not found out.

    Parameters
    ----------
    candidates : mapping of str to callable
        Each block has to do the same work.
    block : int
        Runs of each candidate in a block.
    tolerance : float
    at_most : int
        Blocks of each candidate.
    clock : callable
        Gives the time in seconds.

    Returns
    -------
    dict of str to Warmup

    Raises
    ------
    ValueError
        When `block` or `at_most` is too small to compare anything, or `tolerance` is not above 0.
    """
    if at_most < STABLE_BLOCKS:
        raise ValueError(f"at_most is {at_most}, expected at least {STABLE_BLOCKS}: so many are compared")
    if block < 1:
        raise ValueError(f"block is {block}, expected at least 1 run")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}, expected a share above 0 such as 0.1")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(1, at_most * block + 1):
        for name, run in candidates.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
        whole = turn % block == 0 and turn >= STABLE_BLOCKS * block
        if whole and all(_variation(times, block) <= tolerance for times in seconds.values()):
            break
    return {
        name: Warmup(
            len(times) // block, _variation(times, block) <= tolerance, _variation(times, block), sum(times)
        )
        for name, times in seconds.items()
    }


def _variation(times: list[float], block: int) -> float:
    """Return how far the last blocks are apart; a clock too coarse to see them finds them equal."""
    ends = range(len(times) - block * STABLE_BLOCKS, len(times), block)
    last = [statistics.median(times[start : start + block]) for start in ends]
    smallest = min(last)
    if smallest > 0:
        return max(last) / smallest - 1
    return 0.0 if max(last) == 0 else max(last) / statistics.fmean(last)
