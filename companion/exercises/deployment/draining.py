"""Judges how a server stops: a signal comes while many wait, and none of them may be left unanswered."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from companion.exercises.deployment.answers import distance, read_answer
from companion.exercises.deployment.asking import Asker, Reply
from companion.exercises.deployment.findings import ServerFinding
from companion.exercises.deployment.material import Requirements
from companion.exercises.deployment.offline import ModelFacts
from companion.exercises.deployment.processes import ServerProcess

__all__ = ["Drained", "clients_for", "judge_drain", "taken_by"]

_BEFORE_S, _BLIND_S, _LOAD_S = 0.02, 0.3, 0.5
"""Who counts has asked this long before the signal; longer where the kernel does not tell who read it."""
_FEWEST, _MOST = 16, 64
_BY_SIGNAL = -15
"""uvicorn answers all it accepted and then ends by the signal itself: that is a clean end too."""
_CONNECTED = "01"
_TABLE = Path("/proc/net/tcp")
_ADVICE = "On SIGTERM stop accepting, then wait for what was accepted, and end only then."


@dataclass(frozen=True)
class Drained:
    """How one stop went.

    Attributes
    ----------
    finding : ServerFinding
    under_way : int
        How many requests the server had read and not answered when the signal came.
    """

    finding: ServerFinding
    under_way: int


def clients_for(rate: float) -> int:
    """Return how many clients keep a server of this rate, in requests a second, busy for a third of one."""
    return max(_FEWEST, min(_MOST, round(rate / 3)))


def taken_by(port: int, table: str) -> set[int]:
    """Return the clients' ports whose requests a server has accepted and read, by the kernel's own table.

    Parameters
    ----------
    port : int
        The server's, on 127.0.0.1.
    table : str
        The text of ``/proc/net/tcp``: of each connection both ends, the state, the bytes that wait to be
        read, and the inode, which is 0 until the connection is accepted.
    """
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != _CONNECTED:
            continue
        local, other = (int(words[place].rpartition(":")[2], 16) for place in (1, 2))
        unread = int(words[4].partition(":")[2], 16)
        if local == port and unread == 0 and words[9] != "0":
            found.add(other)
    return found


def judge_drain(
    server: ServerProcess, texts: Sequence[str], facts: ModelFacts, wanted: Requirements, *, clients: int
) -> Drained:
    """Send SIGTERM under load, and look at what was under way at that moment. The server has ended then.

    What the server had accepted and read, and not answered, has to be answered: all of it.
    """
    expected = f"every accepted request answered, and the exit code 0 within {wanted.drain_seconds:g} s"
    load = _Load(server.port, texts, clients, wanted.drain_seconds)
    load.settle()
    looked = time.monotonic()
    taken = _taken(server.port)
    signalled = time.monotonic()
    server.terminate()
    load.over.set()
    code = server.wait(wanted.drain_seconds)
    took = time.monotonic() - signalled
    before = looked - (_BLIND_S if taken is None else _BEFORE_S)
    under_way = [
        (place, reply)
        for place, reply in load.end()
        if reply.sent_at < before
        and reply.ended_at > signalled
        and reply.port
        and (taken is None or reply.port in taken)
    ]
    lost = [reply for place, reply in under_way if not _answered(place, reply, facts, wanted)]
    count = len(under_way)

    def finding(passed: bool, found: str, advice: str = "") -> Drained:
        return Drained(ServerFinding("drain", passed, expected, found, advice), count)

    if lost:
        found = f"{len(lost)} of {count} requests under way lost, the first: {lost[0].says()}"
        return finding(False, found, _ADVICE)
    if code is None:
        advice = "Stop taking requests on SIGTERM, answer what was accepted, let nothing keep the process."
        return finding(False, f"it still runs after {took:.0f} s", advice)
    ended = f"exit code {code} after {took:.1f} s"
    if code not in (0, _BY_SIGNAL):
        advice = "End with 0 when the end was asked for: an orchestrator takes other codes for a crash."
        return finding(False, f"all {count} under way answered, {ended}", advice)
    if not count:
        return finding(True, f"{ended}; nothing was under way, so that none is lost is not shown")
    return finding(True, f"all {count} under way answered, {ended}")


class _Load:
    """Clients that ask without a pause until they are told that it is over."""

    def __init__(self, port: int, texts: Sequence[str], clients: int, patience: float) -> None:
        self.over = threading.Event()
        self._texts, self._patience = texts, patience
        self._asked: list[tuple[int, Reply]] = []
        self._known = threading.Semaphore(0)
        works = [(port, first, clients) for first in range(clients)]
        self._threads = [threading.Thread(target=self._work, args=one, daemon=True) for one in works]
        for thread in self._threads:
            thread.start()

    def settle(self) -> None:
        """Wait until each client has had one answer, and then for a while."""
        until = time.monotonic() + self._patience
        for _ in self._threads:
            self._known.acquire(timeout=max(0.0, until - time.monotonic()))
        time.sleep(_LOAD_S)

    def end(self) -> list[tuple[int, Reply]]:
        """Return the replies, each with the place of its text."""
        until = time.monotonic() + self._patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return list(self._asked)

    def _work(self, port: int, place: int, step: int) -> None:
        with contextlib.closing(Asker(port, timeout=self._patience)) as asker:
            asker.ask(self._texts[place % len(self._texts)])
            self._known.release()
            while not self.over.is_set():
                reply = asker.ask(self._texts[place % len(self._texts)], again=False)
                self._asked.append((place % len(self._texts), reply))
                if not reply.status and self.over.wait(0.02):
                    return
                place += step


def _taken(port: int) -> set[int] | None:
    """Return whose requests the server has read; None where the kernel does not say."""
    try:
        return taken_by(port, _TABLE.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _answered(place: int, reply: Reply, facts: ModelFacts, wanted: Requirements) -> bool:
    """Tell whether a request got its answer, or an orderly refusal."""
    if reply.status in (429, 503):
        return bool(reply.retry_after)
    row = read_answer(reply, facts.labels)
    return not isinstance(row, str) and distance(row, facts.probabilities[place]) <= wanted.close
