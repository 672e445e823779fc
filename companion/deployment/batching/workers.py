"""The threads that do the work: each takes what comes next, by itself, until the line is closed."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from companion.deployment.batching.refusals import too_late

if TYPE_CHECKING:
    from companion.deployment.batching.heartbeat import Heartbeat
    from companion.deployment.batching.running import Runner, Settled
    from companion.deployment.batching.waiter import Work
    from companion.deployment.batching.waiting import Line

__all__ = ["Deliver", "WorkerThreads"]

logger = logging.getLogger("companion.deployment")

Deliver = Callable[[Sequence["Settled"]], None]
"""Told in a worker's thread what became of some requests."""


class WorkerThreads:
    """Threads that run batches.

    They call one session: onnxruntime lets several threads run it at once, each on its own core, with one
    copy of the weights.

    Parameters
    ----------
    line : Line
    runner : Runner
    heartbeat : Heartbeat
        Says how many threads there are.
    deliver : callable
    niceness : int
        Added to the threads' own, on Linux: a higher one lets other threads of the process go first.
    """

    def __init__(
        self, line: Line, runner: Runner, heartbeat: Heartbeat, deliver: Deliver, *, niceness: int = 0
    ) -> None:
        self._line = line
        self._runner = runner
        self._heartbeat = heartbeat
        self._deliver = deliver
        self._niceness = niceness
        # Daemons: a thread that hangs in a model must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"batch-{number}", daemon=True)
            for number in range(heartbeat.workers)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until all threads have ended, which they do when the line is closed and empty.

        Returns
        -------
        bool
            Whether they have.
        """
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return self.ended == len(self._threads)

    @property
    def ended(self) -> int:
        """How many threads do not run."""
        return sum(not thread.is_alive() for thread in self._threads)

    def _work(self, worker: int) -> None:
        if self._niceness and sys.platform == "linux":
            thread = threading.get_native_id()
            own = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, own + self._niceness)
        while (work := self._line.take(worker)) is not None:
            try:
                self._do(worker, work)
            except Exception as error:  # a mistake of ours: nobody shall wait for it, and the thread goes on
                logger.exception("a worker failed")
                for waiter in work.waiters:
                    self._line.discard(waiter)
                self._deliver([(waiter, error) for waiter in work.waiters])
            finally:
                self._heartbeat.end(worker)

    def _do(self, worker: int, work: Work) -> None:
        if work.kind == "expire":
            self._deliver([(waiter, too_late()) for waiter in work.waiters])
        elif work.kind == "encode":
            failed = self._runner.encode(work.waiters)
            for waiter, _ in failed:
                self._line.discard(waiter)
            self._line.encoded(work.waiters)
            self._deliver(failed)
        else:
            for outcomes in self._runner.run(work.waiters, partial(self._heartbeat.begin, worker)):
                self._deliver(outcomes)
