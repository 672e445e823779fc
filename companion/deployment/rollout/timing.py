"""How long answers take: percentiles of the latest ones, in constant memory."""

from __future__ import annotations

from collections import deque

from companion.inference.intervals import Percentile, percentile

__all__ = ["LatencyWindow"]


class LatencyWindow:
    """The latest latencies.

    Percentiles of these alone follow a change that the whole history would hide; their intervals say how
    much so few can tell.

    Parameters
    ----------
    size : int
        How many are kept. The 95% interval of the 99th percentile needs 368.
    """

    def __init__(self, size: int = 2048) -> None:
        self._seconds: deque[float] = deque(maxlen=size)
        self.count = 0
        """How many there ever were."""

    def add(self, seconds: float) -> None:
        """Keep one; the oldest goes when the window is full."""
        self._seconds.append(seconds)
        self.count += 1

    def percentiles(self) -> list[Percentile]:
        """Estimate the median, the 95th and the 99th percentile.

        Returns
        -------
        list of Percentile
            In seconds, each with a 95% interval that assumes nothing about the distribution, or with the
            reason why so few latencies do not tell it.
        """
        return [percentile(self._seconds, percent) for percent in (50, 95, 99)]

    @property
    def kept(self) -> int:
        """How many the percentiles are about."""
        return len(self._seconds)
