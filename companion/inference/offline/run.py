"""Answers for a whole file: what is there already is kept, what is missing is made."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from companion.artifacts.staging import spare
from companion.inference.offline.crews import Crew, alone, in_order, on_ray, open_with_library, processes_of
from companion.inference.offline.job import LoadPredictor, OfflineJob, fingerprint
from companion.inference.offline.unfinished import Note, Unfinished, unfinished
from companion.inference.offline.windows import count_rows, cut
from companion.settings import get_settings

__all__ = ["OfflineReport", "predict_file"]


@dataclass(frozen=True)
class OfflineReport:
    """What became of a file.

    Attributes
    ----------
    out : str
    rows : int
        Lines in it: one for each row, in their order.
    problems : int
        Lines that say why there is no answer.
    resumed : int
        Rows that an earlier run had answered.
    seconds : float
        Of this run.
    rows_per_second : float
        Of this run.
    """

    out: str
    rows: int
    problems: int
    resumed: int
    seconds: float
    rows_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def predict_file(
    job: OfflineJob,
    out: Path,
    *,
    processes: int = 1,
    ray: str | None = None,
    restart: bool = False,
    load: LoadPredictor = open_with_library,
) -> OfflineReport:
    """Answer every row of a file: one line of JSON each, in order, in constant memory.

    The file `out` appears when all is done. Until then the lines are beside it; the same call, made again
    after whatever ended this one, goes on behind the last window that was written, and the file is the same
    to the byte as without the interruption.

    Parameters
    ----------
    job : OfflineJob
    out : Path
        A jsonl file; its folder must exist.
    processes : int
        Processes that answer; they share the threads. With `ray`, the most actors.
    ray : str, optional
        Address of a Ray cluster that answers instead.
    restart : bool
        Whether to throw away what an earlier call has answered.
    load : callable
        Opens the folder; exchange it to ask another kind of model. A function of a module.

    Returns
    -------
    OfflineReport

    Raises
    ------
    FileNotFoundError
        When the file or the folder is missing.
    ValueError
        When one of them cannot be read, for a bad row (before anything is computed) unless it is to be
        recorded, when `out` is an input or is being written, or when input, model or settings are others
        than those of the work that was begun.
    OSError
        When the output cannot be written, or a process was killed.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}, expected at least 1")
    start = time.perf_counter()
    if out.is_dir():
        raise ValueError(f"{out} is a folder: expected a file to write; give a file name")
    # Answers that were kept in the model's folder may be written again.
    spare(out, [job.file, *(path for path in job.folder.glob("*") if path.suffix != ".jsonl")])
    if not job.folder.is_dir():
        load(job.folder, job.threads)  # says what is wrong
    before = _stamp(job.file) if job.file.is_file() else None
    rows = count_rows(job)
    with ExitStack() as stack:
        work = stack.enter_context(unfinished(out, fingerprint(job), restart=restart))
        if isinstance(work, Note):
            return OfflineReport(str(out), rows, work.problems, rows, time.perf_counter() - start, 0.0)
        resumed = work.note.rows
        crew = stack.enter_context(_crew(job, load, processes, ray))
        _answer_rest(job, crew, work, rows)
        if before != _stamp(job.file):
            raise ValueError(f"{job.file} was changed while it was read: run it again, with --restart")
        work.finish()
    seconds = time.perf_counter() - start
    note = work.note
    speed = (note.rows - resumed) / seconds
    return OfflineReport(str(out), note.rows, note.problems, resumed, seconds, speed)


def _answer_rest(job: OfflineJob, crew: Crew, work: Unfinished, rows: int) -> None:
    shown = get_settings().progress
    windows = cut(job, skip=work.note.rows)
    with tqdm(total=rows, initial=work.note.rows, desc="predicting", unit="row", disable=not shown) as bar:
        for answers in in_order(crew, windows):
            work.append(answers)
            bar.update(answers.rows)


def _crew(
    job: OfflineJob, load: LoadPredictor, processes: int, ray: str | None
) -> AbstractContextManager[Crew]:
    if ray is not None:
        return on_ray(job, load, ray, processes if processes > 1 else None)
    return alone(job, load) if processes == 1 else processes_of(job, load, processes)


def _stamp(file: Path) -> tuple[int, int, int]:
    status: os.stat_result = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
