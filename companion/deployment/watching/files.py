"""Files that are written line by line, exchanged when they are full, and deleted when there are too many.

Several processes may write into one folder. Each has files of its own, which it holds locked (`flock`), so
that no other deletes the file that it writes; the lock ends with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["PATTERN", "LogFiles"]

PATTERN = "predictions-*.jsonl"
"""The files of a prediction log. Sorted by name they are sorted by age."""


class LogFiles:
    """Appends to the newest of a bounded number of bytes.

    Nothing is made before the first `write`. Not for several threads at once.

    Parameters
    ----------
    folder : Path
        Made when it is needed, with its parents; shared with other processes.
    file_bytes : int
        A file is exchanged for the next before it grows larger.
    total_bytes : int
        All files in the folder together never hold more: the oldest are deleted first. A file that a process
        writes to counts as full, so that all writers together keep to it.
    clock : callable
        Seconds since 1970, for the files' names.
    """

    def __init__(
        self, folder: Path, *, file_bytes: int, total_bytes: int, clock: Callable[[], float]
    ) -> None:
        self.folder = folder
        self.file_bytes = file_bytes
        self.total_bytes = total_bytes
        self._clock = clock
        self._handle: int | None = None
        self._size = 0
        self._cut = False
        self._latest, self._number = 0.0, 0

    def write(self, lines: bytes) -> None:
        """Append whole lines, all of them or none.

        Parameters
        ----------
        lines : bytes
            At most `file_bytes`, with the end of the last line.

        Raises
        ------
        OSError
            When they cannot be written. What was half written is taken back; where even that fails, a cut
            line stays, and the next one begins on a line of its own.
        """
        if self._handle is not None and (
            self._size + len(lines) + self._cut > self.file_bytes or os.fstat(self._handle).st_nlink == 0
        ):  # full, or deleted by somebody
            self.close()
        if self._handle is None:
            self._handle = self._open()
        data = b"\n" + lines if self._cut else lines
        try:
            if (written := os.write(self._handle, data)) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what a short write to a file means
        except OSError:
            try:
                os.ftruncate(self._handle, self._size)
            except OSError:
                self._size, self._cut = os.fstat(self._handle).st_size, True
            raise
        self._size, self._cut = self._size + written, False

    def close(self) -> None:
        """Let go of the file; the next `write` begins another."""
        if self._handle is not None:
            os.close(self._handle)
        self._handle, self._size, self._cut = None, 0, False

    def _open(self) -> int:
        """Begin a file of our own, once there is room for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._make_room()
            # A clock that is set back must not make a new file look older than the last.
            self._latest = max(self._latest, self._clock())
            moment = datetime.fromtimestamp(self._latest, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            while True:
                self._number += 1
                path = self.folder / f"predictions-{moment}-{os.getpid()}-{self._number:06d}.jsonl"
                with suppress(FileExistsError):
                    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
                    break
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from opening or deleting files of this folder meanwhile."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _make_room(self) -> None:
        """Delete the oldest files until another one may grow to its full size."""
        found = []
        for path in sorted(self.folder.glob(PATTERN)):
            with suppress(FileNotFoundError):
                size, written_to = path.stat().st_size, _is_written_to(path)
                found.append((path, max(size, self.file_bytes) if written_to else size, written_to))
        total = self.file_bytes + sum(size for _, size, _ in found)
        for path, size, written_to in found:
            if total <= self.total_bytes:
                return
            if not written_to:
                path.unlink(missing_ok=True)
                total -= size
        if total > self.total_bytes:
            writers = sum(written_to for _, _, written_to in found)
            raise OSError(
                errno.ENOSPC,
                f"no room: {writers} other processes write files of up to {self.file_bytes:,} bytes, and the "
                f"log may have {self.total_bytes:,}. Allow more in total, or smaller files",
                str(self.folder),
            )


def _is_written_to(path: Path) -> bool:
    """Say whether a living process has this file open to write."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # another user's: leave it alone
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
