"""Processes that hold predictors open and work off the same batches, round after round."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from companion.inference.predictor import OnnxPredictor

__all__ = ["Assignment", "Workers"]

_PATIENCE = 5.0  # seconds for a process to end by itself


@dataclass(frozen=True)
class Assignment:
    """What all workers have to do in a round.

    Attributes
    ----------
    folder : Path
        An ONNX folder.
    texts : tuple of str
    groups : tuple of tuple of int
        The batches: positions in `texts`.
    """

    folder: Path
    texts: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]


class Workers:
    """Processes with sessions. `end` them in any case.

    They are started afresh and not forked: a fork copies a runtime's locks but not its threads.

    Parameters
    ----------
    assignment : Assignment
    processes, sessions, threads : int
        Processes, sessions in each, threads of each session.

    Attributes
    ----------
    cpu_seconds : list of float
        Of all processes, one per round.
    memory : int
        Their resident bytes, after the last round.
    """

    def __init__(self, assignment: Assignment, processes: int, sessions: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.cpu_seconds: list[float] = []
        self.memory = 0
        self._next = context.Value("q", 0)
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            here, there = context.Pipe()
            arguments = (there, self._next, assignment, sessions, threads)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def wait(self) -> None:
        """Wait until all are ready to work.

        Raises
        ------
        RuntimeError
            When a process has ended.
        """
        self._answers()

    def work(self) -> None:
        """Work off all batches once.

        Raises
        ------
        RuntimeError
            When a process has ended.
        """
        self._next.value = 0
        for pipe in self._pipes:
            pipe.send(True)
        answers = self._answers()
        self.cpu_seconds.append(sum(cpu for cpu, _ in answers))
        self.memory = sum(memory for _, memory in answers)

    def end(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.terminate()
                process.join()

    def _answers(self) -> list[tuple[float, int]]:
        try:
            return [pipe.recv() for pipe in self._pipes]
        except (EOFError, ConnectionError):
            raise RuntimeError("a process of the benchmark ended early: see its message above") from None


def _serve(pipe: Connection, number: Any, assignment: Assignment, sessions: int, threads: int) -> None:
    """Be one of the processes: get ready, then work whenever told to, until the pipe is closed."""
    predictors = [OnnxPredictor(assignment.folder, threads=threads) for _ in range(sessions)]
    encodings = predictors[0].encode(assignment.texts)
    batches = [[encodings[place] for place in places] for places in assignment.groups]

    def work(predictor: OnnxPredictor) -> None:
        while True:
            with number.get_lock():
                mine = number.value
                number.value += 1
            if mine >= len(batches):
                return
            predictor.run(batches[mine])

    process = psutil.Process()
    with ThreadPoolExecutor(sessions) as pool:
        pipe.send((0.0, process.memory_info().rss))
        while _told(pipe):
            start = time.process_time()
            list(pool.map(work, predictors))
            pipe.send((time.process_time() - start, process.memory_info().rss))


def _told(pipe: Connection) -> bool:
    try:
        return bool(pipe.recv())
    except EOFError:
        return False
