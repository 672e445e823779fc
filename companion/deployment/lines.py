"""Where log lines go: a file or stderr, without ever stopping or failing the server.

A log is worth less than an answer. A full disk, a file that cannot be opened again and a pipe that nobody
reads cost lines, and the next line that gets through says how many.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["LineFile"]

_LONGEST = 4096
"""Bytes that a pipe with room takes without blocking (PIPE_BUF on Linux)."""


class LineFile:
    """A text stream for log handlers: whole lines, appended.

    Several processes may write to one file. A file that was moved away or deleted (as logrotate does) is
    opened again under its old name.

    Parameters
    ----------
    path : Path, optional
        The file; by default stderr.
    lost : callable, optional
        Makes the line that stands for a number of lost ones.
    write : callable
        Writes bytes to a file descriptor, and returns how many it took.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        lost: Callable[[int], str] = "{} log lines were lost".format,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._path = path
        self._lost_line = lost
        self._write = write
        self._lock = threading.Lock()
        self._torn = False
        self.lost = 0
        """Lines that could not be written since the last one that could."""
        self._descriptor = _stderr() if path is None else _open(path)
        self._poll = _watch(self._descriptor)

    def write(self, text: str) -> int:
        """Append whole lines, or lose them; returns the number of characters, as a stream does."""
        with self._lock:
            try:
                self._reopen_if_moved()
                news = f"{self._lost_line(self.lost)}\n" if self.lost else ""
                self._append((news + text).encode("utf-8", "backslashreplace"))
                self.lost = 0
            except OSError:
                self.lost += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is held back."""

    def close(self) -> None:
        """Close the file; stderr stays open."""
        with self._lock:
            if self._path is not None and self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _append(self, data: bytes) -> None:
        if self._torn:  # half a line is there already: end it
            data = b"\n" + data
        if self._poll is not None:
            # In pieces, because a pipe blocks on more than it has room for.
            for start in range(0, len(data), _LONGEST):
                if not self._poll.poll(0):
                    self._torn = self._torn or start > 0
                    raise BlockingIOError("nobody reads the pipe")
                self._write_all(data[start : start + _LONGEST])
        else:
            self._write_all(data)
        self._torn = False

    def _write_all(self, data: bytes) -> None:
        done = self._write(self._descriptor, data)
        if done < len(data):
            self._torn = True
            raise OSError("the line did not fit")

    def _reopen_if_moved(self) -> None:
        if self._path is None:
            return
        if self._descriptor >= 0:
            try:
                there, ours = self._path.stat(), os.fstat(self._descriptor)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
            except FileNotFoundError:
                pass
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = _open(self._path)
        self._torn = False


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


def _stderr() -> int:
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # something in memory stands in for it
        return 2


def _watch(descriptor: int) -> select.poll | None:
    """Return what tells whether a pipe has room; None for a file, which always has."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll
