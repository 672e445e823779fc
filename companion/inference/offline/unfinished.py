"""Output that is not finished: what is there is right, whatever happened to the process that wrote it.

Beside the file to write lies a folder with the lines so far and a note of how many of them count. A line
counts when it is on the disk; the note is replaced in one step afterwards. What stands behind the last line
that counts is cut off by whoever goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from companion.artifacts.staging import FULL, RIGHTS, readable
from companion.inference.offline.answers import WindowAnswers
from companion.inference.offline.job import name_the_change

__all__ = ["Note", "Unfinished", "rows_kept", "unfinished"]

_LINES, _NOTE = "lines.jsonl", "note.json"


@dataclass(frozen=True)
class Note:
    """How far the work has come.

    Attributes
    ----------
    rows, problems : int
        Lines that count, and those among them that say why there is no answer.
    size : int
        Their bytes.
    sha256 : str
        Of these bytes.
    complete : bool
        Whether nothing is missing but the file's final name.
    """

    rows: int = 0
    problems: int = 0
    size: int = 0
    sha256: str = hashlib.sha256(b"").hexdigest()
    complete: bool = False


class Unfinished:
    """The lines so far. Made by `unfinished`.

    Attributes
    ----------
    note : Note
    """

    def __init__(self, out: Path, folder: Path, fingerprint: Mapping[str, object], note: Note | None) -> None:
        self._out, self._folder, self._fingerprint = out, folder, fingerprint
        self._hash = hashlib.sha256()
        self.note = note or Note()
        if note is None:
            self._clear()
            self._write_note()
        self._lines = self._open()

    def append(self, answers: WindowAnswers) -> None:
        """Write the lines of the next window; afterwards they count.

        Raises
        ------
        OSError
            When the disk is full.
        """
        self._lines.write(answers.lines)
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._hash.update(answers.lines)
        self.note = replace(
            self.note,
            rows=self.note.rows + answers.rows,
            problems=self.note.problems + answers.problems,
            size=self.note.size + len(answers.lines),
            sha256=self._hash.hexdigest(),
        )
        self._write_note()

    def finish(self) -> None:
        """Give the file its name, and take everything else away."""
        self.note = replace(self.note, complete=True)
        self._write_note()
        self._lines.close()
        (self._folder / _LINES).replace(self._out)
        _sync(self._out.parent)
        shutil.rmtree(self._folder)

    def close(self) -> None:
        """Let go of the files. Work that has not begun leaves nothing behind."""
        self._lines.close()
        if not self.note.rows and self._folder.exists():
            shutil.rmtree(self._folder)

    def _clear(self) -> None:
        # The note first: without one, lines count for nothing.
        for name in (_NOTE, _LINES):
            (self._folder / name).unlink(missing_ok=True)

    def _open(self) -> IO[bytes]:
        """Open the lines behind the last one that counts, and take them into the running hash."""
        path = self._folder / _LINES
        lines = path.open("r+b" if path.exists() else "w+b")
        left = self.note.size
        while left and (piece := lines.read(min(left, 1 << 20))):
            self._hash.update(piece)
            left -= len(piece)
        if left or self._hash.hexdigest() != self.note.sha256:
            lines.close()
            raise ValueError(
                f"the lines in {path} are not those that were written there: give --restart to begin again"
            )
        lines.truncate()
        return lines

    def _write_note(self) -> None:
        staging = self._folder / f".{_NOTE}"
        with staging.open("w", encoding="utf-8") as file:
            json.dump({"fingerprint": dict(self._fingerprint), "note": asdict(self.note)}, file)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(self._folder / _NOTE)


@contextmanager
def unfinished(out: Path, fingerprint: Mapping[str, object], *, restart: bool) -> Iterator[Unfinished | Note]:
    """Begin the lines of a file, or go on with those that are there.

    Parameters
    ----------
    out : Path
        The file to write at the end; its folder must exist.
    fingerprint : mapping
        All that the lines depend on.
    restart : bool
        Whether to throw away what is there.

    Yields
    ------
    Unfinished or Note
        The note alone when everything was done, and only the end of the tidying up was missing.

    Raises
    ------
    ValueError
        When another process writes it, or when what is there was begun with something
        else.
    OSError
        When it cannot be written, or the disk is full.
    """
    out = out.expanduser().resolve()
    folder = _folder_of(out)
    advice = "free some space and run it again: it goes on where it stopped"
    with readable(f"{out} cannot be written", advice, FULL), _locked(folder, out):
        note = None if restart else _read_note(folder, fingerprint, out)
        if note is not None and note.complete:
            lines = folder / _LINES
            if lines.exists():
                lines.replace(out)
            if _holds(out, note):
                shutil.rmtree(folder)
                yield note
                return
            note = None  # somebody took the finished file away
        work = Unfinished(out, folder, fingerprint, note)
        try:
            yield work
        finally:
            work.close()


def rows_kept(out: Path) -> int:
    """Return how many rows of a file that is not finished are answered."""
    kept = _load(_folder_of(out.expanduser().resolve()))
    return 0 if kept is None else kept[1].rows


def _folder_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.predicting")


def _load(folder: Path) -> tuple[dict[str, object], Note] | None:
    try:
        kept = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        return kept["fingerprint"], Note(**kept["note"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a note is written whole: where there is none, nothing counts


def _read_note(folder: Path, fingerprint: Mapping[str, object], out: Path) -> Note | None:
    kept = _load(folder)
    if kept is None:
        return None
    begun, note = kept
    if (note.rows or note.complete) and (change := name_the_change(begun, fingerprint)):
        raise ValueError(
            f"{out} was begun with something else ({note.rows:,} rows are answered), and since then has "
            f"changed: {change}. Put it back as it was, or give --restart to begin again"
        )
    return note if note.rows or note.complete else None


def _holds(out: Path, note: Note) -> bool:
    if not out.is_file() or out.stat().st_size != note.size:
        return False
    with out.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == note.sha256


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Keep everybody else out of a folder, which is made. The lock ends with the process, however it ends."""
    while True:
        with readable(f"{out} cannot be written", "give another place", RIGHTS | {errno.ENOENT}):
            folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # somebody finished in this moment
            continue
        try:
            _lock(handle, out)
            if folder.exists() and folder.stat().st_ino == os.fstat(handle).st_ino:
                yield
                return
        finally:
            os.close(handle)


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process writes {out} at this moment: wait for it, or give another name"
        ) from None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
