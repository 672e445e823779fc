"""Says where somebody's own code broke, in one line."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

import torch

import companion

__all__ = ["described", "users_errors"]

_BETWEEN = (Path(companion.__file__).parent, Path(torch.__file__).parent)
_STANDARD = Path(sysconfig.get_paths()["stdlib"])
_INSTALLED = {"site-packages", "dist-packages"}


@contextmanager
def users_errors() -> Iterator[None]:
    """Turn an error that the user's code raises into a ValueError that says what it is and where.

    An error with nothing of theirs in its traceback passes unchanged: it is one of ours.

    Raises
    ------
    ValueError
        For an exception or an exit, with the innermost line of the user's code.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if not _place(error):
            raise
        raise ValueError(f"{described(error)}. Repair it there") from error


def described(error: BaseException) -> str:
    """Return an error as one line: its type, the user's innermost line on the way to it, and what it says."""
    place = _place(error)
    where = f" in {place}" if place else ""
    return f"{type(error).__name__}{where}: {' '.join(str(error).split()) or 'without a message'}".rstrip(".")


def _place(error: BaseException) -> str:
    """Return the function, file and line; empty when all of the traceback is ours, torch's or Python's."""
    installed = ""
    for frame in reversed(extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        library = bool(_INSTALLED.intersection(file.parts))
        if any(map(file.is_relative_to, _BETWEEN)) or not file.is_file():
            continue
        here = f"{frame.name} ({_short(file)}:{frame.lineno})"
        if not library and not file.is_relative_to(_STANDARD):
            return here
        installed = installed or (here if library else "")
    return installed  # a model or a function may be one of an installed library


def _short(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
