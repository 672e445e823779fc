"""Reads a prediction log back, whatever a crash left of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from companion.deployment.watching.columns import Columns, ColumnsBuilder
from companion.deployment.watching.files import PATTERN
from companion.deployment.watching.records import Loss, Prediction, from_line

__all__ = ["LogContent", "Skipped", "log_files", "read_log", "scan"]


_START = b'{"schema":'


@dataclass(frozen=True)
class Skipped:
    """A line that could not be read.

    Attributes
    ----------
    file : Path
    line : int
        Counts from 1.
    """

    file: Path
    line: int

    def __str__(self) -> str:
        """Such as ``predictions-1.jsonl:17``."""
        return f"{self.file.name}:{self.line}"


@dataclass(frozen=True)
class LogContent:
    """What a prediction log holds.

    Attributes
    ----------
    versions : dict of str to Columns
        By model version, in the order of their first answers.
    skipped : tuple of Skipped
        Lines that are cut: a process ended, or the disk was full, while they were written.
    not_logged : int
        Answers without a line, as the log itself notes.
    """

    versions: dict[str, Columns]
    skipped: tuple[Skipped, ...]
    not_logged: int


def read_log(path: Path) -> LogContent:
    """Read a log.

    Parameters
    ----------
    path : Path
        A folder with ``predictions-*.jsonl``, or one file.

    Returns
    -------
    LogContent
        Answers of several processes are put into one order, that of time.

    Raises
    ------
    FileNotFoundError
        When there is no such log, or nothing in it.
    ValueError
        When it is something else, or a later version of this package wrote it.
    """
    builders: dict[str, ColumnsBuilder] = {}
    skipped: list[Skipped] = []
    not_logged = 0
    for item in scan(log_files(path)):
        if isinstance(item, Skipped):
            skipped.append(item)
        elif isinstance(item, Loss):
            not_logged += item.count
        else:
            version = item.model_version
            if version not in builders:
                builders[version] = ColumnsBuilder(version, item.labels)
            builders[version].add(item)
    if not builders:
        raise FileNotFoundError(f"{path} holds no answers yet, expected at least one line: wait for traffic")
    built = [builder.build() for builder in builders.values()]
    ordered = sorted(built, key=lambda columns: columns.times[0])
    return LogContent({columns.version: columns for columns in ordered}, tuple(skipped), not_logged)


def log_files(path: Path) -> list[Path]:
    """Find the files of a log, oldest first.

    Parameters
    ----------
    path : Path
        A folder or a file.

    Returns
    -------
    list of Path

    Raises
    ------
    FileNotFoundError
        When there is nothing.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} does not exist, expected the folder of a prediction log: check the path"
        )
    if found := sorted(path.glob(PATTERN)):
        return found
    others = sorted(other.name for other in path.iterdir())
    holds = f"but {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}" if others else "it is empty"
    raise FileNotFoundError(
        f"{path} holds no {PATTERN}, {holds}: expected the folder that a server writes its prediction log to"
    )


def scan(files: Iterable[Path]) -> Iterator[Prediction | Loss | Skipped]:
    """Read files line by line, in constant memory.

    Parameters
    ----------
    files : iterable of Path

    Yields
    ------
    Prediction, Loss or Skipped

    Raises
    ------
    ValueError
        When a file is no prediction log, or of a later version.
    """
    for file in files:
        yield from _scan(file)


def _scan(file: Path) -> Iterator[Prediction | Loss | Skipped]:
    try:
        lines = file.open("rb")
    except FileNotFoundError:  # deleted to make room, since the folder was listed
        return
    with lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield from_line(line)
            except json.JSONDecodeError:
                if number == 1 and not _begins_a_line(line.rstrip(b"\n")):
                    raise ValueError(
                        f"{file} is no prediction log: line 1 is not JSON. Expected a file {PATTERN}"
                    ) from None
                yield Skipped(file, number)
            except ValueError as error:
                raise type(error)(f"{file}, line {number}: {error}") from None


def _begins_a_line(found: bytes) -> bool:
    """Say whether this can be what is left of a line of ours."""
    return found.startswith(_START) or _START.startswith(found)
