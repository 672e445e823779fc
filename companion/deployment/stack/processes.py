"""Processes that outlive the command that starts them, and are found again by a file with their id.

The file is written by the process itself, before it becomes the program: whoever kills the command that
starts it, at whatever moment, leaves no process without a file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

__all__ = ["ProcessFile"]

_WRITE_AND_BECOME = 'echo $$ > "$0" && exec "$@"'


class ProcessFile:
    """A process, by the file that holds its id.

    Parameters
    ----------
    path : Path
        The file.
    mark : str
        Stands in the command line of the process, and in nobody else's: an id alone may belong to another
        process by now.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path = path
        self.mark = mark
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], log: Path) -> None:
        """Start a program in a session of its own: Ctrl+C in this terminal is not for it.

        Parameters
        ----------
        command : sequence of str
        log : Path
            Gets what it says on stdout and stderr; is begun anew.
        """
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", _WRITE_AND_BECOME, str(self.path), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """The id of the process, or None when it does not run."""
        if self._child is not None and self._child.poll() is None:
            return self._child.pid
        number = self._number()
        if number is None:
            return None
        with suppress(psutil.Error):
            process = psutil.Process(number)
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and any(self.mark in argument for argument in process.cmdline()):
                return number
        return None

    def members(self) -> list[psutil.Process]:
        """Return the process and all that it started and that still runs, also after it has died.

        They share its session. The id of a session is not given to a new process while one of its members
        lives; so where somebody else leads it, there is no member of ours.
        """
        number = self._number() if self._child is None else self._child.pid
        if number is None or (self.pid is None and _alive(number)):
            return []
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stop(self, number: signal.Signals, patience_s: float) -> None:
        """Ask the process to end; after so many seconds end it, and with it whatever it has started."""
        if (pid := self.pid) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            end = time.monotonic() + patience_s
            while self.pid is not None and time.monotonic() < end:
                time.sleep(0.02)
        left = self.members()
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        if self._child is not None:
            self._child.wait()
        self.path.unlink(missing_ok=True)

    def _number(self) -> int | None:
        try:
            return int(self.path.read_text())
        except (FileNotFoundError, ValueError):  # not started, or in this very moment
            return None


def _alive(number: int) -> bool:
    try:
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
