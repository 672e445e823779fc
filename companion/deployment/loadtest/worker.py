"""The process that sends: locust, with gevent in place of the standard library's blocking parts.

Importing locust patches sockets, threads and sleeping for a whole process. So this module is run, by
`Driver`, in a process of its own; whoever only imports it, to read it, gets locust without its patches. It
reads lines of JSON on stdin, first what to send and then one line for each stage, and writes what happened to
stdout as it happens: when it is stopped halfway, what was measured has been told.
"""

# ruff: noqa: E402 - whether locust patches has to be said before it is imported

from __future__ import annotations

import os

_SKIP = "LOCUST_SKIP_MONKEY_PATCH"
if __name__ != "__main__":
    os.environ[_SKIP] = "1"

# First of all other imports: what is imported before it is not patched.
from locust import FastHttpUser, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS
from locust.env import Environment
from locust.exception import StopUser

os.environ.pop(_SKIP, None)

# isort: split
import json
import logging
import signal
import sys
import time
from collections import deque
from typing import Any, ClassVar, TextIO

import gevent  # type: ignore[import-untyped]
from gevent.event import AsyncResult, Event  # type: ignore[import-untyped]
from gevent.timeout import Timeout  # type: ignore[import-untyped]

from companion.deployment.loadtest.arriving import timetable
from companion.deployment.loadtest.asking import Reading, read_answer, retry_after

__all__ = ["Desk", "Visitor", "main"]

_FLUSH_S = 0.25
_PATIENCE_S = 5.0
_PROBE_S = 0.02
_UNSENT = 3
_OUTCOMES = {"ok": 0, "refused": 1, "failed": 2}
_clock = time.perf_counter
_BROKEN = "the connection broke without an answer"


class Desk:
    """Where visitors get their next request, and leave what became of it.

    Parameters
    ----------
    job : dict
        What to send: ``bodies``, ``headers``, ``path``, ``endpoint``, ``timeout``, ``honour``.
    stage : dict
        How much: ``seconds``, and ``users`` or ``rate``, ``arrivals``, ``seed``, ``connections``, ``grace``.
    first : int
        The number of the first request: stages go on in the list of bodies.
    """

    def __init__(self, job: dict[str, Any], stage: dict[str, Any], first: int) -> None:
        self.job, self.stage, self.number = job, stage, first
        self.is_open = "rate" in stage
        self.users: int = stage["connections"] if self.is_open else stage["users"]
        self.samples: list[list[Any]] = []
        self.titles: dict[str, int] = {"": 0}
        self.lags: list[float] = []
        self.opened, self.stopped = Event(), False
        self.start = self.end = _clock()
        self._idle: list[AsyncResult[float | None]] = []
        self._backlog: deque[float] = deque()
        self._closed = False

    def open(self) -> list[gevent.Greenlet[..., Any]]:
        """Begin: from now on requests are due."""
        self.start = _clock()
        self.end = self.start + self.stage["seconds"]
        self.opened.set()
        return [gevent.spawn(self._hand_out)] if self.is_open else []

    def _hand_out(self) -> None:
        """Give each request to a visitor when it is due; where none is free, the next free one takes it."""
        stage = self.stage
        for due in timetable(stage["rate"], stage["seconds"], kind=stage["arrivals"], seed=stage["seed"]):
            while (wait := self.start + due - _clock()) > 0:
                gevent.sleep(wait)
            if self._idle:
                # The visitor who came last: as few connections as the load needs, and those warm.
                self._idle.pop().set(due)
            else:
                self._backlog.append(due)
        while self._backlog and _clock() < self.end + stage["grace"]:
            gevent.sleep(0.01)
        self._closed = True
        while self._idle:
            self._idle.pop().set(None)
        now = _clock() - self.start
        self.samples += [[due, None, now, _UNSENT, 0, 0, None, 0, True] for due in self._backlog]
        self._backlog.clear()

    def take(self) -> tuple[float, bool] | None:
        """Wait for a request: when it is due, and whether it had to wait for a visitor. None at the end."""
        self.opened.wait()
        if not self.is_open:
            now = _clock()
            return (now - self.start, False) if now < self.end else None
        if self._backlog:
            return self._backlog.popleft(), True
        if self._closed:
            return None
        box: AsyncResult[float | None] = AsyncResult()
        self._idle.append(box)
        due = box.get()
        return None if due is None else (due, False)

    def note(
        self,
        due: float,
        sent: float,
        answered: float,
        reading: Reading,
        status: int,
        wait: float | None,
        attempt: int,
        late: bool,
    ) -> None:
        """Remember what became of a request; times count from the start of the stage."""
        title = self.titles.setdefault(reading.title, len(self.titles))
        self.samples.append(
            [
                due,
                sent - self.start,
                answered - self.start,
                _OUTCOMES[reading.outcome],
                status,
                title,
                wait,
                attempt,
                late,
            ]
        )

    def body(self) -> str:
        """Return the next body."""
        found: str = self.job["bodies"][self.number % len(self.job["bodies"])]
        self.number += 1
        return found


class Visitor(FastHttpUser):
    """A client with one connection: takes a request, sends it, leaves what became of it, and comes again."""

    desk: ClassVar[Desk]
    insecure = False
    concurrency = 1
    max_retries = 0

    @task
    def visit(self) -> None:
        """Send requests until there are no more."""
        desk = type(self).desk
        while (work := desk.take()) is not None:
            self._send(desk, *work)
        raise StopUser

    def _send(self, desk: Desk, due: float, late: bool) -> None:
        """Send one request, and again as long as the server asks for patience and the plan has it."""
        body, attempt = desk.body(), 0
        while True:
            sent = _clock()
            reading, status, header = self._post(desk.job, body)
            answered = _clock()
            wait = retry_after(header) if reading.outcome == "refused" else None
            desk.note(due, sent, answered, reading, status, wait, attempt, late)
            if wait is None or not desk.job["honour"]:
                return
            left = desk.end - answered
            if wait >= left:
                if not desk.is_open and left > 0:
                    gevent.sleep(left)
                return
            gevent.sleep(wait)
            attempt += 1

    def _post(self, job: dict[str, Any], body: str) -> tuple[Reading, int, str | None]:
        """Post once; never raises. Locust's own statistics count a failure for what is one here."""
        path, headers = job["path"], job["headers"]
        error: BaseException | None = None
        reading, status, header = Reading("failed"), 0, None
        try:
            with (
                Timeout(job["timeout"]),
                self.client.request(
                    "POST", path, data=body, headers=headers, catch_response=True, allow_redirects=False
                ) as answer,
            ):
                error = getattr(answer, "error", None) or answer.request_meta["exception"]
                status = answer.status_code or 0
                if status:
                    content = answer.content
                    reading = read_answer(job["endpoint"], status, bytes(content or b""))
                    if content is None:
                        raise error or ConnectionError("no body")
                    header = answer.headers.get("retry-after") if answer.headers else None
                if not status or reading.outcome == "failed":
                    answer.failure(reading.title or "no answer")
                else:
                    answer.success()
        except (*FAILURE_EXCEPTIONS, ValueError) as caught:
            error, status = caught, 0
        if status:
            return reading, status, header
        # Whatever state the connection is in, the next request gets a new one.
        self.client.client.clientpool.close()
        return Reading("failed", _name(error, job["timeout"])), 0, None


def _name(error: BaseException | None, timeout: float) -> str:
    """Say in a few words why there was no answer."""
    known = {
        "Timeout": f"no answer within {timeout:g} s",
        "TimeoutError": f"no answer within {timeout:g} s",
        "timeout": f"no answer within {timeout:g} s",
        "ConnectionResetError": _BROKEN,
        "BrokenPipeError": _BROKEN,
        "ConnectionRefusedError": "the connection was refused",
        "HTTPConnectionClosed": _BROKEN,
        "HTTPParseError": "the answer is not HTTP",
    }
    original = getattr(error, "original", None)  # the client wraps what it gives up on
    error = original if isinstance(original, BaseException) else error
    kind = type(error).__name__
    return known.get(kind, f"{kind}: {error}"[:120])


class _Reporter:
    """Writes what a desk has collected, four times a second."""

    def __init__(self, wire: TextIO) -> None:
        self.wire = wire

    def write(self, **message: Any) -> None:
        try:
            self.wire.write(json.dumps(message) + "\n")
            self.wire.flush()
        except BrokenPipeError:  # the parent is gone: whoever it was that loaded the server, nobody reads on
            os._exit(1)

    def flush(self, desk: Desk) -> None:
        samples, desk.samples = desk.samples, []
        lags, desk.lags = desk.lags, []
        cpu, at = time.process_time(), _clock() - desk.start
        self.write(samples=samples, titles=list(desk.titles), lags=lags, cpu=cpu, at=at)

    def keep_flushing(self, desk: Desk) -> None:
        while True:
            gevent.sleep(_FLUSH_S)
            self.flush(desk)


def _probe(desk: Desk) -> None:
    """Measure how late this process wakes up: its own part in every latency."""
    while True:
        before = _clock()
        gevent.sleep(_PROBE_S)
        desk.lags.append(max(0.0, _clock() - before - _PROBE_S))


def _run_stage(environment: Environment, desk: Desk, reporter: _Reporter) -> None:
    runner = environment.runner
    assert runner is not None
    Visitor.desk = desk
    runner.start(desk.users, spawn_rate=desk.users)
    if runner.spawning_greenlet is not None:
        runner.spawning_greenlet.join()
    helpers = desk.open()
    reporter.write(opened=desk.start, users=desk.users)
    helpers += [gevent.spawn(_probe, desk), gevent.spawn(reporter.keep_flushing, desk)]
    try:
        # Whatever holds a visitor up, a stage ends: each request is given up after its timeout.
        latest = desk.end + desk.stage.get("grace", 0.0) + 2 * desk.job["timeout"] + _PATIENCE_S
        while runner.user_greenlets and not desk.stopped and _clock() < latest:
            runner.user_greenlets.join(timeout=0.05)
    finally:
        gevent.killall(helpers)
        runner.stop()
        reporter.flush(desk)
    total = environment.stats.total
    reporter.write(
        done=True,
        stopped=desk.stopped,
        locust=[total.num_requests, total.num_failures],
        end=_clock() - desk.start,
    )


def main() -> None:
    """Serve the parent process: one line of JSON says what to send, each further line is a stage."""
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("locust.runners").setLevel(logging.CRITICAL)
    wire = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints must not get between the lines
    reporter, job = _Reporter(wire), json.loads(sys.stdin.readline())
    Visitor.network_timeout = Visitor.connection_timeout = job["timeout"]
    environment = Environment(user_classes=[Visitor], host=job["origin"])
    environment.create_local_runner()
    environment.events.user_error.add_listener(  # type: ignore[no-untyped-call]
        lambda user_instance, exception, tb: reporter.write(crash=f"{type(exception).__name__}: {exception}")
    )
    current: list[Desk] = []

    def stop() -> None:
        for desk in current:
            desk.stopped = True

    gevent.signal_handler(signal.SIGTERM, stop)
    gevent.signal_handler(signal.SIGINT, stop)
    reporter.write(ready=True)
    number = 0
    for line in sys.stdin:
        desk = Desk(job, json.loads(line), number)
        current[:] = [desk]
        _run_stage(environment, desk, reporter)
        number = desk.number
        if desk.stopped:
            break


if __name__ == "__main__":
    main()
