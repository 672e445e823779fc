"""The child process that sends, seen from the process that asked for the load test."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Driver"]

_MODULE = "companion.deployment.loadtest.worker"
_SILENCE_S = 120.0
"""The child speaks four times a second; one that is silent for so long is not waited for."""
_STOP_S = 10.0


class Driver:
    """Starts the sending process, gives it stages, and hands out what it tells.

    It is a process of its own session: Ctrl-C reaches the caller alone, which then says what to stop.

    Parameters
    ----------
    job : dict
        What to send, see `worker`.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        # -P: a file locust.py in the reader's folder must not be taken for the library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._say(job)
            self._next()  # ready
        except BaseException:
            self.close()
            raise

    def stage(self, stage: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Run a stage.

        Parameters
        ----------
        stage : dict
            See `worker`.

        Yields
        ------
        dict
            What the process tells, as it tells it; the last has ``done``.

        Raises
        ------
        RuntimeError
            When the process fails or falls silent.
        """
        self._say(stage)
        while True:
            message = self._next()
            yield message
            if message.get("done"):
                return

    def stop(self) -> Iterator[dict[str, Any]]:
        """End a stage now, and yield what has not been read yet."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        self._hang_up()
        while True:
            try:
                line = self._lines.get(timeout=_STOP_S)
            except queue.Empty:
                return
            if line is None:
                return
            yield json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._hang_up()
        if self._process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
            self._process.kill()
        self._process.wait()
        self._reader.join(_STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Driver:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def _hang_up(self) -> None:
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise RuntimeError(self._last_words()) from None

    def _read(self) -> None:
        """Read in a thread: a line that Ctrl-C cuts in two would be lost."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _next(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=_SILENCE_S)
        except queue.Empty:
            raise RuntimeError(f"the process that sends has said nothing for {_SILENCE_S:g} s") from None
        if line is None:
            raise RuntimeError(self._last_words())
        message: dict[str, Any] = json.loads(line)
        if "crash" in message:
            raise RuntimeError(f"the process that sends failed: {message['crash']}")
        return message

    def _last_words(self) -> str:
        self._process.wait(_STOP_S)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines() or ["no word of why"]
        return f"the process that sends ended with {self._process.returncode}: {lines[-1]}"
