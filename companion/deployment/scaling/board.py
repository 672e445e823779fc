"""What the processes of a server tell one another, in memory that they share.

Each has a line of its own and writes nothing else. Nobody has to be told that a process died or froze: its
times grow old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FRESH_S", "Board"]

FRESH_S = 1.0
"""How long, in seconds, a note counts. Notes are written ten times as often."""
_FIELDS = 3


@dataclass(frozen=True)
class Board:
    """The lines of all processes.

    Parameters
    ----------
    cells : sequence of float
        Three for each process: when its loop last turned, when it last was ready, its open connections.
    clock : callable
        Seconds that are the same in all processes, never going back.
    """

    cells: MutableSequence[float]
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def shared(cls, processes: int) -> Board:
        """Make one in memory that processes which are started with it share."""
        import multiprocessing

        cells: Any = multiprocessing.get_context("spawn").RawArray("d", _FIELDS * processes)
        return cls(cells)

    def beat(self, process: int, *, ready: bool, connections: int) -> None:
        """Write a process's line.

        Parameters
        ----------
        process : int
            From 0.
        ready : bool
            Whether it answers questions.
        connections : int
            That are open.
        """
        now, start = self.clock(), _FIELDS * process
        self.cells[start] = now
        if ready:
            self.cells[start + 1] = now
        else:
            self.cells[start + 1] = 0.0
        self.cells[start + 2] = connections

    def wipe(self, process: int) -> None:
        """Forget a process: it has ended, or begins."""
        start = _FIELDS * process
        self.cells[start : start + _FIELDS] = [0.0] * _FIELDS

    def silent_s(self, process: int) -> float | None:
        """Return for how long a process's loop has not turned; None when it never did."""
        last = self.cells[_FIELDS * process]
        return self.clock() - last if last else None

    def others(self, process: int) -> list[int]:
        """Return how many connections each other process has that is ready at this moment."""
        now = self.clock()
        return [
            int(self.cells[start + 2])
            for start in range(0, len(self.cells), _FIELDS)
            if start != _FIELDS * process and self.cells[start + 1] and now - self.cells[start + 1] < FRESH_S
        ]
