"""Runs a learner's function: whatever it does, the caller gets an answer in limited time."""

from __future__ import annotations

import contextlib
import ctypes
import io
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Outcome", "run"]

_PRINTED = 2_000
_FAREWELLS = 20


@dataclass(frozen=True)
class Outcome:
    """How a call ended.

    Attributes
    ----------
    ended : {"returned", "raised", "too long", "not written"}
        The last one: it raised NotImplementedError, as a starter does.
    value : object
        What it returned.
    error : str
        What it raised, with the line.
    printed : str
        The beginning of what it printed.
    alive : bool
        Whether it could not be stopped and still runs.
    seconds : float
    """

    ended: Literal["returned", "raised", "too long", "not written"]
    value: Any
    error: str
    printed: str
    alive: bool
    seconds: float


class _Stopped(BaseException):
    """Thrown into a function that does not return. No learner's ``except Exception`` catches it."""


class _Sink(io.TextIOBase):
    """Keeps the beginning of what is printed, and counts the rest."""

    def __init__(self) -> None:
        self.kept, self.dropped = "", 0

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        room = max(0, _PRINTED - len(self.kept))
        self.kept += text[:room]
        self.dropped += len(text[room:])
        return len(text)

    @property
    def text(self) -> str:
        return self.kept + (f"\n… and {self.dropped:,} more characters" if self.dropped else "")


def run(function: Callable[..., Any], *arguments: Any, seconds: float) -> Outcome:
    """Call a function in a thread of its own, with a time limit and without letting it print.

    Parameters
    ----------
    function : callable
    *arguments : object
        Passed by position: what the parameters are called is the learner's choice.
    seconds : float
        After this the function is stopped between two of its lines. One that is inside a single long
        operation cannot be stopped; it is left behind, and `Outcome.alive` says so.

    Returns
    -------
    Outcome
    """
    sink, results = _Sink(), list[Any]()
    error: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as caught:  # SystemExit too: nothing that a learner raises ends the page
            error.append(caught)

    thread = threading.Thread(target=work, daemon=True, name="learner")
    start = time.perf_counter()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        thread.start()
        thread.join(seconds)
        late = thread.is_alive()
        for _ in range(_FAREWELLS):  # a bare except swallows one; a loop of them seldom all
            if not thread.is_alive():
                break
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stopped)
            )
            thread.join(0.05)
    took = time.perf_counter() - start
    if late:
        return Outcome("too long", None, "", sink.text, thread.is_alive(), took)
    if error:
        ended: Literal["raised", "not written"] = (
            "not written" if isinstance(error[0], NotImplementedError) else "raised"
        )
        return Outcome(ended, None, _describe(error[0]), sink.text, False, took)
    return Outcome("returned", results[0], "", sink.text, False, took)


def _describe(error: BaseException) -> str:
    """Name an exception, its message and the learner's line, even where the message itself raises."""
    try:
        message = " ".join(str(error).split())[:300]
    except Exception:
        message = "(its message cannot be read)"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this module's
    own = frames[0] if frames else None
    where = f", in line {own.lineno} of {own.name}: {own.line}" if own and own.line else ""
    return f"{type(error).__name__}: {message}{where}"
