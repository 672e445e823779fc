"""Folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "FULL",
    "RIGHTS",
    "check_folder",
    "flush",
    "put_in_place",
    "readable",
    "remove",
    "spare",
    "staged_file",
    "staged_folder",
]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
RIGHTS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR})


@contextmanager
def staged_folder(folder: Path, *, marker: str, inputs: Iterable[Path | str] = ()) -> Iterator[Path]:
    """Write a folder of the reader's choice, complete or not at all.

    Gives an empty folder beside it to write into, which takes its place when the block ends. When the block
    raises, everything is as it was.

    Parameters
    ----------
    folder : Path
        Where to; parents are made. A folder that holds `marker` is replaced; so is an empty one.
    marker : str
        The name of a file that shows that an existing folder is of the kind that is written here.
    inputs : iterable of Path or str
        What must not be replaced, see `spare`.

    Yields
    ------
    Path
        The folder to write into.

    Raises
    ------
    ValueError
        When `folder` is a file, holds other things than what is written here, or is or holds an input.
    OSError
        When it cannot be written, or the disk is full.
    """
    folder = folder.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a folder to write; give another name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise ValueError(
            f"{folder} is not empty and has no {marker}: expected a new or empty folder, or an earlier result"
        )
    spare(folder, inputs)
    name = f".{folder.name}.{uuid.uuid4().hex[:8]}"
    staging, replaced = folder.with_name(f"{name}.building"), folder.with_name(f"{name}.replaced")
    missing = [parent for parent in folder.parents if not parent.exists()]
    with readable(f"{folder} cannot be written", "give another folder", RIGHTS | FULL | {errno.ENOENT}):
        staging.mkdir(parents=True)
    try:
        with readable(f"{folder} cannot be written", "free some space, or give another folder", FULL):
            yield staging
            put_in_place(staging, folder, replaced)
    finally:
        remove(staging, replaced)
        for parent in missing:  # deepest first
            with suppress(OSError):  # it holds the result, or somebody else's
                parent.rmdir()


class _Checked(Exception):
    """Ends `staged_folder` before anything takes its place."""


def check_folder(folder: Path, *, marker: str, inputs: Iterable[Path | str] = ()) -> None:
    """Raise now what `staged_folder` would raise after the work is done; leave everything as it is.

    Parameters
    ----------
    folder : Path
    marker : str
    inputs : iterable of Path or str
        As for `staged_folder`.

    Raises
    ------
    ValueError, OSError
        As `staged_folder`.
    """
    with suppress(_Checked), staged_folder(folder, marker=marker, inputs=inputs):
        raise _Checked


@contextmanager
def staged_file(file: Path, *, inputs: Iterable[Path | str] = ()) -> Iterator[Path]:
    """Write a file of the reader's choice, complete or not at all.

    Parameters
    ----------
    file : Path
        Where to; its folder must exist. A file that is there is replaced when the block ends.
    inputs : iterable of Path or str
        What must not be replaced, see `spare`.

    Yields
    ------
    Path
        The file to write, beside the final one.

    Raises
    ------
    ValueError
        When `file` is a folder or an input.
    OSError
        When it cannot be written, or the disk is full.
    """
    file = file.expanduser().resolve()
    if file.is_dir():
        raise ValueError(f"{file} is a folder: expected a file to write; give a file name")
    spare(file, inputs)
    staging = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.building")
    with readable(f"{file} cannot be written", "give another place", RIGHTS | FULL | {errno.ENOENT}):
        staging.touch()
    try:
        with readable(f"{file} cannot be written", "free some space, or give another place", FULL):
            yield staging
            _fsync(staging)
            staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)


def spare(output: Path, inputs: Iterable[Path | str]) -> None:
    """Refuse an output that is an input, or a folder that holds one.

    Parameters
    ----------
    output : Path
    inputs : iterable of Path or str
        By whatever name: links are followed. Those that do not exist are compared by name.

    Raises
    ------
    ValueError
        When one of them would be lost.
    """
    place = output.expanduser().resolve()
    for given in inputs:
        path = Path(given).expanduser().resolve()
        same = place.exists() and path.exists() and place.samefile(path)
        if same or place == path or place in path.parents:
            raise ValueError(
                f"{output} would take the place of {given}, which this command needs: "
                "expected another output; give another name"
            )


@contextmanager
def readable(what: str, advice: str, numbers: Container[int | None]) -> Iterator[None]:
    """Turn an error of the operating system into a line that says what to do. Others pass unchanged.

    Parameters
    ----------
    what : str
        What failed, as the beginning of a sentence.
    advice : str
        What to do, as its end.
    numbers : container of int
        The error numbers it is about: `FULL`, `RIGHTS`.

    Raises
    ------
    OSError
        Of the same kind and number as the original.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
        raise type(error)(error.errno, f"{what} ({(error.strerror or '').lower()}): {advice}") from error


def put_in_place(building: Path, folder: Path, replaced: Path) -> None:
    """Force a folder to the disk and rename it to its name.

    Parameters
    ----------
    building : Path
        What was written.
    folder : Path
        Its name; what has it now is moved away first.
    replaced : Path
        Where that is moved to, for the caller to remove.
    """
    flush(building)
    if folder.exists():
        folder.rename(replaced)
    building.rename(folder)
    _fsync(folder.parent)


def flush(folder: Path) -> None:
    """Force a folder and all in it to the disk, so that a power cut after a rename finds it whole."""
    for path in (*folder.rglob("*"), folder):
        _fsync(path)


def remove(*folders: Path) -> None:
    """Delete folders that may not exist."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
