"""Several server processes behind one port: started, watched, started again, and ended together.

They share one listening socket and not one each (SO_REUSEPORT): a connection that waits belongs to nobody,
so that a process which dies takes along only those that it had begun.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from companion.deployment.app import Load, load_onnx
from companion.deployment.configuration import ServerSettings
from companion.deployment.metrics import METRICS_FOLDER, bury_the_dead
from companion.deployment.scaling.board import Board
from companion.deployment.scaling.dividing import check_alone, divide
from companion.deployment.scaling.member import Membership, run_member
from companion.deployment.scaling.restarting import Restarts
from companion.deployment.server import GRACE_S, announce

__all__ = ["supervise"]

logger = logging.getLogger("companion.deployment")

_FROZEN_S = 30.0
"""How long, in seconds, a process's loop may stand still before it is killed."""
_LOOK_S = 0.5


@dataclass
class _Place:
    """Where one process runs, and after it the next."""

    membership: Membership
    restarts: Restarts = field(default_factory=Restarts)
    process: SpawnProcess | None = None
    line: Connection | None = None
    ready_at: float | None = None
    failure: str | None = None
    start_at: float | None = None


def supervise(
    folder: Path, settings: ServerSettings, listener: socket.socket, load: Load | None = None
) -> None:
    """Run `settings.processes` servers behind one port until SIGTERM or SIGINT.

    The address is printed when all of them can answer. A process that dies is started again, its place in the
    metrics taken back; the others go on. One that cannot load its model ends everything when no other serves;
    while another does, and when a process keeps dying, it is tried again a few times before.

    Parameters
    ----------
    folder : Path
    settings : ServerSettings
    listener : socket
        Listens.
    load : callable, optional
        As for `create_app`; a function of a module.

    Raises
    ------
    ValueError
        When the settings cannot be divided, or when the processes cannot load their model.
    ChildProcessError
        When processes keep dying.
    """
    check_alone(settings, "processes")
    shares = divide(settings, settings.processes)
    board = Board.shared(settings.processes)
    places = [
        _Place(Membership(folder, share, load or load_onnx, number, board))
        for number, share in enumerate(shares)
    ]
    with ExitStack() as stack:
        stack.enter_context(_numbers_shared())
        _Supervisor(places, board, listener).run()


class _Supervisor:
    def __init__(self, places: list[_Place], board: Board, listener: socket.socket) -> None:
        self._places, self._board, self._listener = places, board, listener
        self._context = multiprocessing.get_context("spawn")
        self._announced = False
        self._reason: Exception | None = None
        self._signals: list[int] = []
        self._wake, self._waker = os.pipe()

    def run(self) -> None:
        """Start, watch and end them."""
        resource_tracker.ensure_running()  # it would let signals through in the middle of a start
        with self._signals_noted():
            try:
                for place in self._places:
                    self._start(place)
                while not self._signals and self._reason is None:
                    self._watch()
            finally:
                self._end()
                os.close(self._wake)
                os.close(self._waker)
        if self._reason is not None:
            raise self._reason

    def _start(self, place: _Place) -> None:
        here, there = self._context.Pipe()
        place.line, place.ready_at, place.failure, place.start_at = here, None, None, None
        self._board.wipe(place.membership.process)
        arguments = (place.membership, self._listener, there)
        place.process = self._context.Process(target=run_member, args=arguments)
        held = {signal.SIGTERM, signal.SIGINT}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, held)  # inherited: see run_member
        try:
            place.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()

    def _watch(self) -> None:
        """Wait until something happens, and take care of it."""
        running = [place for place in self._places if place.process is not None]
        sources: list[Any] = [self._wake]
        sources += [place.line for place in running if place.line is not None]
        sources += [place.process.sentinel for place in running if place.process is not None]
        happened = wait(sources, timeout=_LOOK_S)
        for place in running:
            if place.line in happened:
                self._listen(place)
            assert place.process is not None
            if place.process.sentinel in happened:
                self._bury(place)
            elif (self._board.silent_s(place.membership.process) or 0.0) > _FROZEN_S:
                logger.error("process %d stands still and is killed", place.process.pid)
                place.process.kill()
        for place in self._places:
            if place.start_at is not None and time.monotonic() >= place.start_at and self._reason is None:
                self._start(place)
        if not self._announced and all(place.ready_at is not None for place in self._places):
            self._announced = True
            announce(self._listener)

    def _listen(self, place: _Place) -> None:
        assert place.line is not None
        try:
            what, detail = place.line.recv()
        except (EOFError, OSError):  # it ended; its sentinel says so too
            place.line.close()
            place.line = None
            return
        if what == "ready":
            place.ready_at = time.monotonic()
        else:
            place.failure = detail

    def _bury(self, place: _Place) -> None:
        """Take a process away that has ended, and say when its place is filled again."""
        process = place.process
        assert process is not None
        if place.line is not None:
            while place.line is not None and place.line.poll():  # its last words
                self._listen(place)
            if place.line is not None:
                place.line.close()
        process.join()
        place.process = place.line = None
        self._board.wipe(place.membership.process)
        bury_the_dead(Path(os.environ[METRICS_FOLDER]))
        served = None if place.ready_at is None else time.monotonic() - place.ready_at
        others = any(other.ready_at is not None for other in self._places if other is not place)
        place.ready_at = None
        delay = place.restarts.ended(ready_for_s=served)
        if place.failure is not None and not others:
            self._reason = ValueError(place.failure)
        elif delay is None and place.failure is not None:
            self._reason = ValueError(
                f"{place.failure} A process could not be started again, after {place.restarts.tries} tries."
            )
        elif delay is None:
            self._reason = ChildProcessError(
                f"a process ended {place.restarts.tries + 1} times in a row, the last time {_how(process)}: "
                "look for the cause in the log, or give fewer --processes if memory is short."
            )
        else:
            why = place.failure or _how(process)
            logger.error("process %d ended (%s) and is started again in %g s", process.pid, why, delay)
            place.start_at = time.monotonic() + delay

    def _end(self) -> None:
        """Let all answer what they accepted, and wait; a second Ctrl+C does not wait."""
        for place in self._places:
            if place.process is not None:
                place.process.terminate()
        last, interrupts = time.monotonic() + GRACE_S + 10.0, self._signals.count(signal.SIGINT)
        while running := [place.process for place in self._places if place.process is not None]:
            wait([self._wake, *(process.sentinel for process in running)], timeout=_LOOK_S)
            with suppress(BlockingIOError):
                os.read(self._wake, 64)
            if self._signals.count(signal.SIGINT) > max(1, interrupts):
                interrupts = self._signals.count(signal.SIGINT)
                for process in running:
                    os.kill(process.pid or 0, signal.SIGINT)
            for place in self._places:
                if place.process is not None and not place.process.is_alive():
                    place.process = None
            if time.monotonic() > last:
                for process in running:
                    process.kill()

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: object) -> None:
            self._signals.append(number)
            with suppress(OSError):
                os.write(self._waker, b"!")

        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _how(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


@contextmanager
def _numbers_shared() -> Iterator[None]:
    """Name a folder in which the processes keep their metrics, so that each can answer for all."""
    if os.environ.get(METRICS_FOLDER):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="companion-metrics-") as folder:
        os.environ[METRICS_FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[METRICS_FOLDER]
