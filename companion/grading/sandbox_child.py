"""The other side of the sandbox: a process that has torch loaded, and forks one for each run.

It reads none of what it passes on. Code, inputs and answers go through pipes that the forked process alone
uses, so that no run can find in its memory what another one was given.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import linecache
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from companion.grading import isolation

__all__ = ["serve"]

_PRELOADED = ("json", "math", "pytest", "companion.models.cache", "torch", "torch.nn.utils.rnn")
_DIED = 99
PATIENCE = 2.0
"""Wall time, as a multiple of the processor time that a run may take; and 2 s more."""


def serve(control_fd: int) -> None:
    """Load what submitted code will import, then fork a process for each request until the other side ends.

    Parameters
    ----------
    control_fd : int
        A Unix stream socket. A request is a line of JSON with three file descriptors: the code to run, its
        answer, and what it prints. The reply is a line of JSON: what was in force, how it ended.
    """
    _load()
    with socket.socket(fileno=control_fd) as control:
        control.sendall(b"ready\n")
        while True:
            message, fds, _, _ = socket.recv_fds(control, 4096, 3)
            if not message:
                return
            # A reply is owed for each request, whatever happens.
            report = _supervise(json.loads(message), fds)
            control.sendall(json.dumps(report).encode() + b"\n")


def _load() -> None:
    for name in _PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    # The first step of an optimizer imports a good part of torch.
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    torch.optim.AdamW([parameter]).step()


def _supervise(request: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Fork a keeper, which forks the runner; wait for the keeper."""
    receive, report = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        _keep(request, fds, report)
    for fd in (*fds, report):
        os.close(fd)
    with os.fdopen(receive, "rb") as lines:
        told = [json.loads(line) for line in lines]
    os.waitpid(keeper, 0)
    return {name: value for part in told for name, value in part.items()}


def _keep(request: dict[str, Any], fds: Sequence[int], report: int) -> None:
    """In a process of its own: enter the namespaces, start the runner, end it in time."""
    status: dict[str, Any] = {"ended": "not started"}
    try:
        os.setsid()
        folder = Path(request["folder"])
        made = isolation.enter_namespaces(folder, request["file_bytes"])
        runner = os.fork()
        if runner == 0:
            _become_runner(request, folder, made, fds, report)
        for fd in fds:
            os.close(fd)
        status = _wait(runner, request["seconds"])
    except OSError as error:
        status = {"ended": "not started", "error": str(error)}
    finally:
        with contextlib.suppress(OSError):
            os.write(report, json.dumps(status).encode() + b"\n")
        os._exit(0)


def _wait(runner: int, seconds: float) -> dict[str, Any]:
    """Wait for the runner, kill all it started, and say how it ended."""
    late = not _ends_within(runner, seconds)
    if late:
        # Number 1 of its world: the kernel ends all that it started with it.
        os.kill(runner, signal.SIGKILL)
    _, state = os.waitpid(runner, 0)
    with contextlib.suppress(OSError):
        os.killpg(runner, signal.SIGKILL)
    return {"ended": "too long" if late else "exited", "code": os.waitstatus_to_exitcode(state)}


def _ends_within(runner: int, seconds: float) -> bool:
    """Tell whether it ends by itself: within its processor time, and on a busy machine within more."""
    until = time.monotonic() + PATIENCE * seconds + 2
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.monotonic() < until and _processor_seconds(runner) < seconds:
        if os.waitid(os.P_PID, runner, ended):
            return True
        time.sleep(0.005)
    return bool(os.waitid(os.P_PID, runner, ended))


def _processor_seconds(process: int) -> float:
    """Return what a process has used; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _become_runner(
    request: dict[str, Any], folder: Path, made: list[str], fds: Sequence[int], report: int
) -> None:
    """In a process of its own: give up everything, then run the code and answer."""
    try:
        os.setsid()
        job, answer, printed = fds
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, name in ((nothing, 0), (printed, 1), (printed, 2)):
            os.dup2(fd, name)
        keep = sorted({0, 1, 2, job, answer, report})
        for low, high in zip(keep, [*keep[1:], 1 << 20], strict=True):
            os.closerange(low + 1, min(high, os.sysconf("SC_OPEN_MAX")))
        os.environ.clear()
        os.environ.update(HOME=str(folder), TMPDIR=str(folder), OMP_NUM_THREADS="1")
        os.chdir(folder)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)  # nothing flushes it at the end
        tempfile.tempdir = None  # what it was before the fork
        with os.fdopen(job, "rb") as pipe:
            work = json.loads(pipe.read())
        importlib.invalidate_caches()
        sys.path[:] = [path for path in sys.path if path not in ("", request["root"])]
        made = made + isolation.restrict(
            folder,
            seconds=request["seconds"],
            memory_bytes=request["memory_bytes"],
            file_bytes=request["file_bytes"],
        )
        os.write(report, json.dumps({"isolation": made}).encode() + b"\n")
        os.close(report)
        _run(work, answer)
    finally:
        os._exit(_DIED)


def _run(work: dict[str, Any], answer: int) -> None:
    """Run the code; write one answer, after the number that says whose it is."""
    # Taken now: what the code replaces later is not what answers.
    encode, write, leave, clock = json.JSONEncoder().encode, os.write, os._exit, time.perf_counter
    nonce, files, entry, inputs = work["nonce"], work["files"], work["entry"], work["inputs"]
    work.clear()
    start = clock()
    sys.meta_path.insert(0, _Memory(files))
    module, _, function = entry.partition(":")
    try:
        value = {"value": getattr(importlib.import_module(module), function)(inputs)}
        text = encode({**value, "seconds": clock() - start})
    except BaseException as error:  # SystemExit too: nothing that the code raises is an answer
        text = encode({"error": _describe(error)})
    data = memoryview(f"{nonce}\n{text}".encode())
    while data:
        data = data[write(answer, data) :]
    leave(0)


def _describe(error: BaseException) -> str:
    """Name an exception, its message and the line that raised it."""
    try:
        said = " ".join(str(error).split())[:300]
    except BaseException:
        said = "(its message cannot be read)"
    trace, where = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.endswith(".py") and "/" not in code.co_filename:
            where = f" (line {trace.tb_lineno} of {code.co_filename}, {code.co_name})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {said}{where}"


class _Memory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules from texts: nothing of them is ever on a disk."""

    def __init__(self, files: dict[str, str]) -> None:
        self.sources = {name.removesuffix(".py"): text for name, text in files.items()}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.sources:
            return None
        return importlib.util.spec_from_loader(name, self)

    def exec_module(self, module: ModuleType) -> None:
        file, source = f"{module.__name__}.py", self.sources[module.__name__]
        module.__file__ = file
        # So that tracebacks and inspect show the code.
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), module.__dict__)
