"""What every worker does at this moment, and since when: from it come estimates of waiting, and readiness."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Heartbeat"]


@dataclass(frozen=True, slots=True)
class _Task:
    since: float
    expected_s: float


class Heartbeat:
    """Notes of the workers about themselves.

    A worker notes each step that it begins and ends. Nothing has to watch: whoever asks compares the notes
    with the clock, so that a worker which hangs is noticed although it cannot say so, and one that comes back
    counts again without anybody's doing.

    Parameters
    ----------
    workers : int
    stuck_after_s : float
        A step that takes longer than this hangs.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self, workers: int, *, stuck_after_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.workers = workers
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        # One slot per worker, replaced whole: a reader sees the old note or the new one.
        self._tasks: list[_Task | None] = [None] * workers
        self._progress = [clock()] * workers

    def begin(self, worker: int, expected_s: float) -> None:
        """Note that a worker begins a step.

        Parameters
        ----------
        worker : int
            From 0.
        expected_s : float
            How long the step should take.
        """
        now = self._clock()
        self._progress[worker] = now
        self._tasks[worker] = _Task(now, expected_s)

    def end(self, worker: int) -> None:
        """Note that a worker has nothing to do."""
        self._progress[worker] = self._clock()
        self._tasks[worker] = None

    @property
    def idle(self) -> int:
        """Number of workers that have nothing to do."""
        return self._tasks.count(None)

    @property
    def last_progress(self) -> float:
        """When any worker last began or ended a step, by the clock."""
        return max(self._progress)

    def remaining_s(self) -> float:
        """Estimate how much work the current steps still are, in seconds of one worker.

        A step that is overdue has nothing left: it may end at any moment.
        """
        now = self._clock()
        tasks = [task for task in self._tasks if task is not None]
        return sum(max(0.0, task.since + task.expected_s - now) for task in tasks)

    def stuck(self) -> list[float]:
        """Return how long each worker that hangs has been in its step, in seconds."""
        now = self._clock()
        busy = [now - task.since for task in self._tasks if task is not None]
        return [seconds for seconds in busy if seconds > self._stuck_after_s]
