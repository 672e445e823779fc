"""Who answers the windows: this process, several of this machine, or Ray's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from companion.inference.offline.answers import WindowAnswers, answer_window
from companion.inference.offline.job import LoadPredictor, OfflineJob
from companion.inference.offline.windows import Window
from companion.settings import get_settings

if TYPE_CHECKING:
    from companion.inference.predictor import Predictor

__all__ = ["Crew", "alone", "in_order", "on_ray", "open_with_library", "processes_of"]

_AHEAD = 2
"""Windows under way for each worker: one that runs, one that waits for it."""


class Crew(Protocol):
    """Workers that answer windows."""

    @property
    def workers(self) -> int:
        """Windows that are answered at once."""

    def submit(self, window: Window) -> Any:
        """Begin a window; gives what `collect` wants."""

    def collect(self, handle: Any) -> WindowAnswers:
        """Wait for a window's answers; raises what the worker raised."""


def open_with_library(folder: Path, threads: int | None) -> Predictor:
    """Open a folder with the predictor that fits it: `companion.inference.load_predictor`."""
    from companion.inference.loading import load_predictor

    return load_predictor(folder, threads=threads)


def in_order(crew: Crew, windows: Iterable[Window]) -> Iterator[WindowAnswers]:
    """Have windows answered, and give the answers in the order of the windows.

    Parameters
    ----------
    crew : Crew
    windows : iterable of Window
        Read as workers become free, so that few are in memory.

    Yields
    ------
    WindowAnswers
    """
    under_way = deque[Any]()
    for window in windows:
        under_way.append(crew.submit(window))
        if len(under_way) >= _AHEAD * crew.workers:
            yield crew.collect(under_way.popleft())
    while under_way:
        yield crew.collect(under_way.popleft())


class _Alone:
    """The calling process."""

    workers = 1

    def __init__(self, job: OfflineJob, load: LoadPredictor) -> None:
        self._job = job
        self._predictor = load(job.folder, job.threads)

    def submit(self, window: Window) -> Window:
        return window

    def collect(self, handle: Window) -> WindowAnswers:
        job = self._job
        return answer_window(self._predictor, handle, batch_size=job.batch_size, on_error=job.on_error)


@contextmanager
def alone(job: OfflineJob, load: LoadPredictor) -> Iterator[Crew]:
    """Answer in this process.

    Parameters
    ----------
    job : OfflineJob
    load : callable
        Opens the folder.
    """
    yield _Alone(job, load)


class _Processes:
    def __init__(self, job: OfflineJob, load: LoadPredictor, workers: int, pool: ProcessPoolExecutor) -> None:
        self.workers = workers
        self._pool = pool
        threads = max(1, (job.threads or get_settings().threads) // workers)
        self._task = (load, job.folder, threads, job.batch_size, job.on_error)

    def submit(self, window: Window) -> Any:
        return self._pool.submit(_answer, *self._task, window)

    def collect(self, handle: Any) -> WindowAnswers:
        try:
            answers: WindowAnswers = handle.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process ended early: something killed it, perhaps for want of memory. Run the same "
                "command again, it goes on where it stopped; perhaps with fewer --processes"
            ) from None
        return answers


@contextmanager
def processes_of(job: OfflineJob, load: LoadPredictor, workers: int) -> Iterator[Crew]:
    """Answer in processes of their own, each with one session, which share the threads.

    They are started afresh and not forked: a fork copies a runtime's locks but not its threads. They end with
    this process, however it ends.

    Parameters
    ----------
    job : OfflineJob
    load : callable
        Opens the folder.
    workers : int
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        yield _Processes(job, load, workers, pool)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def on_ray(job: OfflineJob, load: LoadPredictor, address: str, workers: int | None) -> Iterator[Crew]:
    """Answer on a Ray cluster.

    The model's folder has to lie under the same name on every machine; the file is read here alone. An actor
    that dies is started again, and its window with it.

    Parameters
    ----------
    job : OfflineJob
    load : callable
        Opens the folder.
    address : str
        Of the cluster, such as ``auto`` or ``127.0.0.1:6379``.
    workers : int, optional
        Actors. Default: as many as the cluster has room for.

    Raises
    ------
    ValueError
        When Ray is not installed.
    ConnectionError
        When no cluster answers there.
    """
    from companion.inference.offline.ray_crew import gathered  # Ray waits until it is asked for

    with gathered(job, load, address, workers) as crew:
        yield crew


@lru_cache(maxsize=1)
def _open(load: LoadPredictor, folder: Path, threads: int) -> Predictor:
    return load(folder, threads)


def _answer(
    load: LoadPredictor, folder: Path, threads: int, batch_size: int, on_error: Any, window: Window
) -> WindowAnswers:
    return answer_window(_open(load, folder, threads), window, batch_size=batch_size, on_error=on_error)


def _begin() -> None:
    """Let a worker leave Ctrl+C to the process that started it, and end when that one does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
