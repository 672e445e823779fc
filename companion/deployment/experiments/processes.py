"""A server in a process of its own, for the length of a block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

__all__ = ["Replied", "ServerProcess", "ask", "serving"]

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Replied:
    """What a server said.

    Attributes
    ----------
    status : int
    headers : dict of str to str
        Names in lower case.
    body : Any
        The JSON document.
    """

    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True)
class ServerProcess:
    """A server that runs.

    Attributes
    ----------
    url : str
    pid : int
    ready_s : float
        Seconds from the start of the process to its line that says where it serves.
    """

    url: str
    pid: int
    ready_s: float


def ask(
    url: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Replied:
    """Send one request and return what came back, whatever its status.

    Parameters
    ----------
    url : str
    body : optional
        Sent as JSON; without one it is a GET.
    method : str, optional
    headers : mapping of str to str, optional
    timeout_s : float

    Returns
    -------
    Replied
    """
    data = None if body is None else json.dumps(body).encode()
    sent = dict(headers or {}) | ({} if data is None else {"Content-Type": "application/json"})
    request = Request(url, data, sent, method=method)
    try:
        with urlopen(request, timeout=timeout_s) as answer:
            return _replied(answer.status, answer.headers, answer.read())
    except HTTPError as error:
        with error:
            return _replied(error.code, error.headers, error.read())


def _replied(status: int, headers: Any, body: bytes) -> Replied:
    try:
        document = json.loads(body)
    except ValueError:
        document = body.decode("utf-8", "replace")
    return Replied(status, {name.lower(): value for name, value in headers.items()}, document)


@contextmanager
def serving(
    folder: Path,
    *arguments: object,
    plant: str | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Run ``companion serve FOLDER`` on a free port of this machine.

    Parameters
    ----------
    folder : Path
    *arguments
        Further arguments of the command.
    plant : str, optional
        A fault: see `companion.deployment.experiments.planted`. It takes no arguments of the command then.
    environment : dict of str to str, optional
        Variables besides those of this process.

    Yields
    ------
    ServerProcess
        Ready.

    Raises
    ------
    RuntimeError
        When the server ends before it is ready; the message holds its last words.
    """
    command = [sys.executable, "-m"]
    if plant is None:
        command += ["companion.cli", "serve", str(folder), "--port", "0", *map(str, arguments)]
    else:
        command += ["companion.deployment.experiments.planted", str(folder), plant, *map(str, arguments)]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=os.environ | (environment or {}),
        )
        try:
            url = _address(process, said)
            yield ServerProcess(url, process.pid, time.monotonic() - started)
        finally:
            _end(process)


def _address(process: subprocess.Popen[bytes], said: Any) -> str:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        said.seek(0)
        words = said.read().split()
        if "serving" in words:
            return str(next(word for word in words if word.startswith("http://")))
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {' '.join(words[-60:])}")
        time.sleep(0.02)
    raise RuntimeError(f"the server was not ready within {_PATIENCE_S:g} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it answer what it accepted; a server whose model hangs for good is killed."""
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
