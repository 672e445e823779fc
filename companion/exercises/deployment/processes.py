"""A server in a process of its own: started, waited for, told to stop, and ended whatever it does."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["ServerProcess", "free_port", "surroundings"]

_KEPT = 4_000
READY = "/health/ready"


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody has at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def surroundings(scratch: Path) -> dict[str, str]:
    """Return an environment in which this Python and its packages are found first, and nothing of ours else.

    Parameters
    ----------
    scratch : Path
        The only folder that the server may write in.
    """
    programs = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
    root = Path(__file__).parents[3]
    return {
        "PATH": os.pathsep.join(programs),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "COMPANION_HOME": str(scratch),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **({} if root.name.endswith("-packages") else {"PYTHONPATH": str(root)}),
    }


class ServerProcess:
    """A server that runs, with the end of what it printed.

    Parameters
    ----------
    argv : sequence of str
    folder : Path
        Where it is started.
    environment : mapping of str to str
        All of it.
    port : int
        Where it should listen.

    Raises
    ------
    OSError
        When there is no such program.
    """

    def __init__(self, argv: Sequence[str], folder: Path, environment: Mapping[str, str], port: int) -> None:
        self.port = port
        self._said = bytearray()
        self._process = subprocess.Popen(
            list(argv),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        """Return the server."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.kill()

    @property
    def said(self) -> str:
        """The end of what it printed."""
        return self._said.decode(errors="replace").strip()

    @property
    def ended(self) -> int | None:
        """Its exit code; negative for a signal, None while it runs."""
        return self._process.poll()

    def ready_within(self, seconds: float) -> float | None:
        """Wait until it says that it is ready; return how long that took, None when it did not come to it."""
        start = time.monotonic()
        while (now := time.monotonic()) - start < seconds and self.ended is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            try:
                connection.request("GET", READY)
                if connection.getresponse().status == 200:
                    return now - start
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.05)
        return None

    def terminate(self) -> None:
        """Send SIGTERM to the process that was started, as an orchestrator does."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int | None:
        """Wait for its end; return the exit code, or None when it still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it, with all that it started in its own session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._reader.join(1)

    def _read(self) -> None:
        """Keep the end of what it prints: a server that prints without end fills neither memory nor disk."""
        pipe = self._process.stdout
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError), pipe:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                self._said += chunk
                del self._said[:-_KEPT]
