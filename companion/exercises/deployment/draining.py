"""Judges how a server stops: a signal comes while many wait, and none of them may be left unanswered."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from companion.exercises.deployment.answers import distance, read_answer
from companion.exercises.deployment.asking import Asker, Reply
from companion.exercises.deployment.findings import ServerFinding
from companion.exercises.deployment.material import Requirements
from companion.exercises.deployment.offline import ModelFacts
from companion.exercises.deployment.processes import ServerProcess

__all__ = ["clients_for", "judge_drain"]

_BEFORE_S, _LOAD_S = 0.05, 0.8
"""A request that was sent less than this before the signal may not have reached the server yet."""
_STRAY = 0.1
"""Of the others, on a busy machine, this share may not have either. Who does not drain loses nearly all."""
_FEWEST, _MOST = 8, 64
_BY_SIGNAL = -15
"""uvicorn answers all it accepted and then ends by the signal itself: that is a clean end too."""


def clients_for(rate: float) -> int:
    """Return how many clients keep a server of this rate (requests a second) busy for a third of a second."""
    return max(_FEWEST, min(_MOST, round(rate / 3)))


def judge_drain(
    server: ServerProcess, texts: Sequence[str], facts: ModelFacts, wanted: Requirements, *, clients: int
) -> ServerFinding:
    """Send SIGTERM under load, and look at what was under way at that moment. The server has ended then."""
    expected = f"every accepted request answered, and the exit code 0 within {wanted.drain_seconds:g} s"
    asked: list[tuple[int, Reply]] = []
    over, known = threading.Event(), threading.Semaphore(0)

    def work(first: int) -> None:
        # One request before the load: the server has accepted this connection.
        asker, place = Asker(server.port, timeout=wanted.drain_seconds), first
        asker.ask(texts[place % len(texts)])
        known.release()
        while not over.is_set():
            reply = asker.ask(texts[place % len(texts)], again=False)
            asked.append((place % len(texts), reply))
            if not reply.status and over.wait(0.02):
                break
            place += clients
        asker.close()

    threads = [threading.Thread(target=work, args=(first,), daemon=True) for first in range(clients)]
    for thread in threads:
        thread.start()
    for _ in threads:
        known.acquire(timeout=wanted.drain_seconds)
    time.sleep(_LOAD_S)
    signalled = time.monotonic()
    server.terminate()
    over.set()
    code = server.wait(wanted.drain_seconds)
    took = time.monotonic() - signalled
    for thread in threads:
        thread.join(1)
    under_way = [
        (place, reply)
        for place, reply in list(asked)
        if reply.sent_at < signalled - _BEFORE_S and reply.ended_at > signalled
    ]
    lost = [reply for place, reply in under_way if not _answered(place, reply, facts, wanted)]
    if code is None:
        advice = (
            "Stop taking requests on SIGTERM, answer what was accepted, and let nothing keep the process."
        )
        return ServerFinding("drain", False, expected, f"it still runs after {took:.0f} s", advice)
    if len(lost) > _STRAY * len(under_way):
        found = f"{len(lost)} of {len(under_way)} requests under way lost, the first: {lost[0].says()}"
        advice = "On SIGTERM stop accepting, then wait for what was accepted, and end only then."
        return ServerFinding("drain", False, expected, found, advice)
    answered = f"{len(under_way) - len(lost)} of {len(under_way)} under way answered"
    found = f"{answered}, exit code {code} after {took:.1f} s"
    if code not in (0, _BY_SIGNAL):
        advice = "End with 0 when the end was asked for: an orchestrator takes other codes for a crash."
        return ServerFinding("drain", False, expected, found, advice)
    return ServerFinding("drain", True, expected, found)


def _answered(place: int, reply: Reply, facts: ModelFacts, wanted: Requirements) -> bool:
    """Tell whether a request got its answer, or an orderly refusal."""
    if reply.status in (429, 503):
        return bool(reply.retry_after)
    row = read_answer(reply, facts.labels)
    return not isinstance(row, str) and distance(row, facts.probabilities[place]) <= wanted.close
