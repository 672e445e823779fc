"""Actors of a Ray cluster that answer windows. Needs the extra ``scale``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from companion.inference.offline.answers import WindowAnswers, answer_window
from companion.inference.offline.job import LoadPredictor, OfflineJob
from companion.inference.offline.windows import Window
from companion.settings import get_settings

__all__ = ["gathered"]


class _Worker:
    """Holds one predictor open."""

    def __init__(self, load: LoadPredictor, folder: Path, threads: int) -> None:
        self._load, self._folder, self._threads = load, folder, threads
        self._predictor: Any = None

    def answer(self, window: Window, batch_size: int, on_error: Any) -> WindowAnswers:
        if self._predictor is None:  # here, so that what goes wrong is an answer and not a dead actor
            self._predictor = self._load(self._folder, self._threads)
        return answer_window(self._predictor, window, batch_size=batch_size, on_error=on_error)


class _Gathered:
    def __init__(self, job: OfflineJob, actors: list[Any]) -> None:
        self.workers = len(actors)
        self._job, self._actors, self._next = job, actors, 0

    def submit(self, window: Window) -> Any:
        actor = self._actors[self._next % len(self._actors)]
        self._next += 1
        return actor.answer.remote(window, self._job.batch_size, self._job.on_error)

    def collect(self, handle: Any) -> WindowAnswers:
        import ray

        try:
            answers: WindowAnswers = ray.get(handle)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause or error) from None
        except ray.exceptions.RayError as error:
            raise ChildProcessError(
                f"Ray lost the work ({type(error).__name__}). Run the same command again, it goes on where "
                "it stopped"
            ) from None
        return answers


@contextmanager
def gathered(job: OfflineJob, load: LoadPredictor, address: str, workers: int | None) -> Iterator[_Gathered]:
    """Start actors on a cluster, and end them with the block.

    Parameters are those of `companion.inference.offline.crews.on_ray`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ValueError("Ray is not installed, and --ray needs it: pip install 'companion[scale]'") from None
    threads = job.threads or get_settings().threads
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise ConnectionError(f"no Ray cluster answers at {address} ({said[:200]})") from None
    try:
        room = int(_resources().get("CPU", 1) // threads)
        remote: Any = ray.remote(num_cpus=threads, max_restarts=-1, max_task_retries=-1)(_Worker)
        # Their number is bounded by the room: an actor without it would wait for ever.
        count = max(1, min(workers or room, room))
        yield _Gathered(job, [remote.remote(load, job.folder.resolve(), threads) for _ in range(count)])
    finally:
        if ours:
            ray.shutdown()


def _resources() -> dict[str, float]:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found
