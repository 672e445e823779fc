"""Clients that ask by a timetable and keep every answer: for what a load test's counts do not tell."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

__all__ = ["SteadyClients", "Told"]


@dataclass(frozen=True)
class Told:
    """One request and what came of it.

    Attributes
    ----------
    text : int
        Its place among the texts.
    due : float
        Seconds since the clients began, by the timetable.
    ended : float
        Seconds since the clients began, when the answer was there.
    status : int
        0 where there was none.
    label, version : str or None
        Of an answer.
    """

    text: int
    due: float
    ended: float
    status: int
    label: str | None = None
    version: str | None = None

    @property
    def seconds(self) -> float:
        """From when it was due to the end."""
        return self.ended - self.due


class SteadyClients:
    """Asks one server for texts, in turn, until it is told to stop or has asked often enough.

    A request that is due while all connections wait is sent late; its time counts from when it was due.

    Parameters
    ----------
    url : str
    texts : sequence of str
    rate : float
        Requests per second, evenly spaced. Infinite: each connection asks as soon as it was answered, and a
        request is due when it is sent.
    count : int, optional
        Requests in all. Default: until the end of the block.
    connections : int
    timeout_s : float
        Longest wait for one answer.

    Raises
    ------
    ValueError
        Without texts, and for a rate that is not above 0.
    """

    def __init__(
        self,
        url: str,
        texts: Sequence[str],
        *,
        rate: float = math.inf,
        count: int | None = None,
        connections: int = 16,
        timeout_s: float = 10.0,
    ) -> None:
        if not texts or not rate > 0:
            raise ValueError(f"found {len(texts)} texts and a rate of {rate}, expected some and above 0")
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._bodies = [json.dumps({"text": text}).encode() for text in texts]
        self._rate, self._count, self._timeout_s = rate, count, timeout_s
        self._lock = threading.Lock()
        self._next = 0
        self._told: list[Told] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(connections)]
        self._begun = 0.0

    def __enter__(self) -> SteadyClients:
        """Begin to ask."""
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop, unless there is a count to reach, and wait for what is on its way."""
        if self._count is None or error[0] is not None:
            self.stop()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Send no further request."""
        self._stopped.set()

    @property
    def elapsed(self) -> float:
        """Seconds since they began."""
        return time.monotonic() - self._begun

    @property
    def told(self) -> list[Told]:
        """All that came back, in the order in which it was due."""
        with self._lock:
            return sorted(self._told, key=lambda one: one.due)

    def _work(self) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        while True:
            with self._lock:
                number, self._next = self._next, self._next + 1
            due = number / self._rate if math.isfinite(self._rate) else self.elapsed
            ended = self._count is not None and number >= self._count
            if ended or self._stopped.wait(max(0.0, due - self.elapsed)):
                connection.close()
                return
            place = number % len(self._bodies)
            status, body = _exchange(connection, self._bodies[place])
            answer = body if status == 200 else {}
            told = Told(place, due, self.elapsed, status, answer.get("label"), answer.get("model_version"))
            with self._lock:
                self._told.append(told)


def _exchange(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = answer.read()
        with suppress(ValueError):
            return answer.status, json.loads(found)
        return answer.status, {}
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0, {}
