"""Several batchers that one observer watches: their lines are shown as one."""

from __future__ import annotations

import threading

from companion.deployment.observing import ServingObserver

__all__ = ["SummedQueues"]


class SummedQueues:
    """Gives each batcher an observer of its own; the lengths of their lines are added up.

    Two batchers that told one observer would each overwrite what the other said of its line.

    Parameters
    ----------
    observer : ServingObserver
        Told of the sum, and of everything else as it comes.
    """

    def __init__(self, observer: ServingObserver) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._lines: dict[int, tuple[int, float]] = {}
        self._made = 0

    def part(self) -> ServingObserver:
        """Make the observer of one more batcher."""
        with self._lock:
            self._made += 1
            return _Part(self, self._made, self._observer)

    def line(self, number: int, length: int, oldest_age_s: float) -> None:
        """Take the state of one line, and tell that of all."""
        with self._lock:
            if length:
                self._lines[number] = (length, oldest_age_s)
            else:
                self._lines.pop(number, None)
            lengths = sum(length for length, _ in self._lines.values())
            oldest = max((age for _, age in self._lines.values()), default=0.0)
            self._observer.queue(lengths, oldest)


class _Part:
    """The observer of one batcher."""

    def __init__(self, queues: SummedQueues, number: int, observer: ServingObserver) -> None:
        self._queues, self._number = queues, number
        self.waited = observer.waited
        self.batch = observer.batch
        self.event = observer.event

    def queue(self, length: int, oldest_age_s: float) -> None:
        """Take the state of the queue."""
        self._queues.line(self._number, length, oldest_age_s)
