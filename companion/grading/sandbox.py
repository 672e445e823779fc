"""Runs submitted code in a process of its own, with limits, and takes plain numbers back.

The code, its inputs and its answer pass through pipes as JSON. Nothing that the code prints, returns or
claims is a score: the grader compares the numbers with what right code gives on the same inputs, in another
process. So a forged answer is worth what a wrong one is.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

__all__ = ["Outcome", "Sandbox", "run"]

_ROOT = Path(__file__).parents[2]
_PRINTED, _ANSWER = 2_000, 8 << 20
_STARTING, _GRACE = 120.0, 10.0
_SERVE = (
    "import sys; sys.path.insert(0, {root!r}); from companion.grading.sandbox_child import serve; serve({fd})"
)

Ended = Literal["returned", "raised", "too long", "died", "tampered"]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    ended : {"returned", "raised", "too long", "died", "tampered"}
        ``died``: it ended without an answer. ``tampered``: what came back is not one answer of ours.
    value : object
        What the entry returned, as JSON has it. Numbers may be infinite or NaN.
    error : str
        What it raised, or how it died.
    printed : str
        The beginning of what it printed. It is never read as an answer.
    isolation : tuple of str
        What was in force: some of ``no network``, ``own process numbers``, ``own file system``, ``limits``,
        ``no privileges``, ``landlock``, ``seccomp``, ``audit hook``.
    seconds : float
    """

    ended: Ended
    value: Any = None
    error: str = ""
    printed: str = ""
    isolation: tuple[str, ...] = ()
    seconds: float = 0.0


class Sandbox:
    """A process with torch loaded, from which each run is forked: seconds to start, a moment for each run.

    Use it as a context manager. It runs one thing at a time.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = _SERVE.format(root=str(_ROOT), fd=theirs.fileno())
        environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": os.defpath, "HOME": os.devnull}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", code],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = ours
        self._lock = threading.Lock()
        ours.settimeout(_STARTING)
        try:
            started = ours.recv(6)
        except TimeoutError:
            started = b""
        if started != b"ready\n":
            self.close()
            raise RuntimeError("the sandbox's process did not start: what it printed says why")

    def __enter__(self) -> Self:
        """Return the sandbox."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process, with all that it started."""
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def run(
        self,
        files: Mapping[str, str],
        entry: str,
        inputs: Any,
        *,
        seconds: float = 20.0,
        memory_bytes: int = 1 << 30,
        file_bytes: int = 16 << 20,
    ) -> Outcome:
        """Run a function of submitted code.

        Parameters
        ----------
        files : mapping of str to str
            Names and texts of modules that can be imported. They are never written to a disk.
        entry : str
            ``module:function``; the function takes the inputs.
        inputs : object
            What JSON can hold.
        seconds : float
            Processor time. Twice as much in wall time, and 2 s more: other work on the machine is not the
            code's fault.
        memory_bytes : int
            Address space beyond what Python and torch take.
        file_bytes : int
            For the largest file and, with a file system of its own, for all files together.

        Returns
        -------
        Outcome
            Whatever the code does.

        Raises
        ------
        RuntimeError
            When the sandbox itself was closed or lost.
        """
        nonce = secrets.token_hex(16)
        job = json.dumps({"nonce": nonce, "files": dict(files), "entry": entry, "inputs": inputs}).encode()
        start = time.perf_counter()
        with self._lock, tempfile.TemporaryDirectory(prefix="companion-") as folder:
            request = {
                "folder": folder,
                "root": str(_ROOT),
                "seconds": seconds,
                "memory_bytes": memory_bytes,
                "file_bytes": file_bytes,
            }
            answer, printed, report = self._exchange(request, job, seconds)
            _open_up(Path(folder))
        text = printed.decode(errors="replace")
        isolation = tuple(report.get("isolation", ()))
        seen = _read(answer, nonce, report)
        return Outcome(seen[0], seen[1], seen[2], text, isolation, time.perf_counter() - start)

    def _exchange(
        self, request: dict[str, Any], job: bytes, seconds: float
    ) -> tuple[bytes, bytes, dict[str, Any]]:
        """Send a request and its pipes; return the answer, what was printed, and the report."""
        (job_out, job_in), (answer_out, answer_in), (printed_out, printed_in) = (os.pipe() for _ in range(3))
        theirs, ours = (job_out, answer_in, printed_in), (answer_out, printed_out)
        sender = threading.Thread(target=_send, args=(job_in, job), daemon=True)
        try:
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], theirs)
            finally:
                for fd in theirs:
                    os.close(fd)
                sender.start()
            answer, printed = _collect(ours, (_ANSWER, _PRINTED), 2 * seconds + _GRACE)
            self._control.settimeout(2 * seconds + _GRACE)
            report: dict[str, Any] = json.loads(self._control.makefile("rb").readline() or b"{}")
        except (OSError, ValueError) as error:
            raise RuntimeError(f"the sandbox is gone ({error}): open another") from error
        finally:
            for fd in ours:
                os.close(fd)
            sender.join(1)
        return answer, printed, report


def run(
    files: Mapping[str, str],
    entry: str,
    inputs: Any,
    *,
    seconds: float = 20.0,
    memory_bytes: int = 1 << 30,
    file_bytes: int = 16 << 20,
) -> Outcome:
    """Run a function of submitted code once; see `Sandbox.run`. For several runs, keep a `Sandbox`."""
    with Sandbox() as sandbox:
        return sandbox.run(
            files, entry, inputs, seconds=seconds, memory_bytes=memory_bytes, file_bytes=file_bytes
        )


def _send(fd: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "wb") as pipe:
        pipe.write(data)


def _collect(fds: tuple[int, int], limits: tuple[int, int], seconds: float) -> tuple[bytes, bytes]:
    """Read both pipes to their ends; keep one byte more than the limit, which tells, and drop the rest."""
    kept = {fd: bytearray() for fd in fds}
    until = time.perf_counter() + seconds
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and (left := until - time.perf_counter()) > 0:
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fd)
                room = limits[fds.index(key.fd)] + 1 - len(kept[key.fd])
                kept[key.fd] += chunk[:room]
    return bytes(kept[fds[0]]), bytes(kept[fds[1]][: limits[1]])


def _read(answer: bytes, nonce: str, report: Mapping[str, Any]) -> tuple[Ended, Any, str]:
    """Parse what came back, believing nothing of it."""
    if report.get("ended") == "too long":
        return "too long", None, "it did not end in time, and was stopped"
    if report.get("ended") != "exited":
        return "died", None, str(report.get("error", "it could not be started"))
    if not answer:
        return "died", None, f"it ended without an answer (exit code {report.get('code')})"
    head, _, body = answer.partition(b"\n")
    if not secrets.compare_digest(head, nonce.encode()) or len(answer) > _ANSWER:
        return "tampered", None, "what came back is not an answer, or is too long"
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "tampered", None, "what came back is not one answer"
    if not isinstance(found, dict) or not ("value" in found or isinstance(found.get("error"), str)):
        return "tampered", None, "what came back is not one answer"
    if "error" in found:
        return "raised", None, str(found["error"])[:600]
    return "returned", found["value"], ""


def _open_up(folder: Path) -> None:
    """Make all that was left behind deletable, and delete it."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            with contextlib.suppress(OSError):
                (Path(path) / name).chmod(0o700, follow_symlinks=False)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
