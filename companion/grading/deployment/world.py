"""The other side of grading: a small world with a network of its own, in which servers are started and asked.

Process number 1 of that world is ours. It starts the submitted server with fewer rights, asks it over the
loopback, and judges what comes back; when it ends, the kernel ends all that is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from companion.exercises.deployment import Material, Requirements, Site, inspect, read_submission
from companion.grading import isolation
from companion.grading.deployment.confining import Confinement

__all__ = ["main"]

_SCRATCH_BYTES, _SHARED_BYTES = 256 << 20, 64 << 20
_MEMORY_BYTES, _WATCH_S = 2 << 30, 0.25
_PROBE_S = 60.0
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8


def main() -> None:
    """Read a job from stdin, make the world, inspect in it, write what was found to stdout."""
    _die_with_parent()
    job = json.load(sys.stdin)
    scratch = Path(job["scratch"])
    made = isolation.enter_namespaces(scratch, _SCRATCH_BYTES)
    child = os.fork()
    if child == 0:
        _die_with_parent()
        try:
            _live(job, made)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os._exit(0)


def _die_with_parent() -> None:
    """End when whoever grades ends, however that happens."""
    with contextlib.suppress(AttributeError):  # not Linux
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)


def _live(job: dict[str, Any], made: list[str]) -> None:
    """Be process number 1: furnish the world, inspect, and say what was found."""
    alone = "no network" in made
    if alone:
        _furnish()
        alone = _loopback_up()
    scratch, folder = Path(job["scratch"]), Path(job["folder"])
    confinement = Confinement(str(folder), str(scratch), alone)
    said: dict[str, Any]
    watch = _MemoryWatch()
    watch.start()
    try:
        site = Site(scratch, wrap=confinement.wrap, clear=_end_all)
        inspection = inspect(read_submission(folder), _material(job["material"]), site)
        said = {"inspection": inspection.to_dict()}
    except Exception as error:
        said = {"error": f"{type(error).__name__}: {error}"}
    said["isolation"] = [*made, *_in_force(confinement)]
    said["memory"] = watch.ended
    sys.stdout.write(json.dumps(said))
    sys.stdout.flush()


def _in_force(confinement: Confinement) -> list[str]:
    """Confine a process as the servers were, and let it tell what the kernel made of it."""
    told = subprocess.run(confinement.wrap([]), capture_output=True, check=False, timeout=_PROBE_S)
    try:
        return [str(name) for name in json.loads(told.stdout)]
    except ValueError:
        return []


def _material(told: dict[str, Any]) -> Material:
    rounds = tuple(map(tuple, told["rounds"]))
    wanted = Requirements(**told["requirements"])
    texts, candidates = tuple(told["texts"]), tuple(told["candidates"])
    return Material(texts, tuple(told["labels"]), rounds, wanted, candidates)


def _furnish() -> None:
    """Show this world's own processes in /proc, and give it shared memory that ends with it."""
    mount = ctypes.CDLL(None, use_errno=True).mount
    mount(b"proc", b"/proc", b"proc", _NOSUID | _NODEV | _NOEXEC, None)
    options = f"size={_SHARED_BYTES},mode=1777".encode()
    mount(b"tmpfs", b"/dev/shm", b"tmpfs", _NOSUID | _NODEV | _NOEXEC, options)


def _loopback_up() -> bool:
    """Switch on the loopback of a fresh network, in which it is off; tell whether it is on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            told = fcntl.ioctl(control, _GET_FLAGS, struct.pack("16sH14x", b"lo", 0))
            flags = struct.unpack("16sH14x", told)[1]
            fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _UP))
        except OSError:
            return False
    return True


def _others() -> Iterator[psutil.Process]:
    """Yield the processes of this world; where it is not of its own, those that this one started."""
    own = psutil.Process()
    yield from psutil.process_iter() if own.pid == 1 else own.children(recursive=True)


def _end_all() -> None:
    """End whatever is left of a server, wherever it hid; a process that makes others has a few attempts."""
    own = os.getpid()
    for _ in range(50):
        left = [one for one in _others() if one.pid != own and _runs(one)]
        if not left:
            return
        for one in left:
            with _gone():
                os.kill(one.pid, signal.SIGKILL)
        while own == 1:  # orphans come to number 1
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        time.sleep(0.02)


def _runs(one: psutil.Process) -> bool:
    with _gone():
        return bool(one.status() != psutil.STATUS_ZOMBIE)
    return False


class _gone:
    """Nothing is wrong when a process has ended meanwhile."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Swallow what says that it is gone."""
        return kind is not None and issubclass(kind, psutil.Error | ProcessLookupError)


class _MemoryWatch(threading.Thread):
    """Ends all servers when they take more memory together than allowed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = False

    def run(self) -> None:
        """Look a few times a second."""
        own = os.getpid()
        while True:
            taken = 0
            for one in _others():
                with _gone():
                    taken += 0 if one.pid == own else one.memory_info().rss
            if taken > _MEMORY_BYTES:
                self.ended = True
                _end_all()
            time.sleep(_WATCH_S)


if __name__ == "__main__":
    main()
