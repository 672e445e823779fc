"""The overload of `benchmarks/serving.py`: three times what the server can do, and what becomes of it."""

from __future__ import annotations

import json
import statistics
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from serving_candidates import Started
from serving_traffic import Load, Traffic

PAUSE_MS = 1000
"""Mean pause of a client between an answer and its next question, under overload."""


@dataclass
class Probe:
    """One more client, which measures by its own clock: it asks, waits a little, and asks again.

    `late` counts answers 200 that came when the deadline had passed, on the client's side.
    """

    server: Started
    body: bytes
    timeout_ms: int
    accepted: list[float] = field(default_factory=list)
    other: dict[str, int] = field(default_factory=dict)

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begin = time.monotonic()
            status = self._ask()
            if status == "200":
                self.accepted.append(time.monotonic() - begin)
            else:
                self.other[status] = self.other.get(status, 0) + 1
            time.sleep(0.05)

    def _ask(self) -> str:
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": str(self.timeout_ms)}
        address = f"http://127.0.0.1:{self.server.port}/predict"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(address, self.body, headers), timeout=30
            ) as got:
                got.read()
                return str(got.status)
        except urllib.error.HTTPError as error:
            error.read()
            return str(error.code)
        except OSError as error:
            return type(error).__name__


def overload(
    server: Started, traffic: Traffic, seconds: float, *, times: float, timeout_ms: int
) -> dict[str, Any]:
    """Measure the peak, then `times` as much, then the peak again: both sides of it on the same machine."""
    traffic.drive(server.port, 3)
    before = traffic.drive(server.port, seconds)
    at_rest = server.memory_mb()
    peak = before.rate
    # As many clients as, with their pauses, ask so often when all are refused at once; and those who wait.
    clients = round(times * peak * PAUSE_MS / 1000 + peak * timeout_ms / 1000)
    body = json.dumps(traffic.body(traffic.texts[0], "text")).encode()
    probe = Probe(server, body, timeout_ms)
    asking = threading.Thread(target=probe.run, args=(seconds,))
    highest: list[float] = []
    over = threading.Event()
    watching = threading.Thread(target=_watch, args=(server, highest, over))
    asking.start()
    watching.start()
    load = traffic.drive(server.port, seconds, clients=clients, pause_ms=PAUSE_MS, timeout_ms=timeout_ms)
    asking.join()
    over.set()
    watching.join()
    after = traffic.drive(server.port, seconds)
    return verdict((before, after), load, probe) | {
        "clients": clients,
        "timeout_ms": timeout_ms,
        "memory_mb": {"peak_load": at_rest, "overload": max(highest, default=at_rest)},
    }


def _watch(server: Started, highest: list[float], over: threading.Event) -> None:
    while not over.wait(0.5):
        highest.append(server.memory_mb())


def verdict(peaks: tuple[Load, Load], load: Load, probe: Probe) -> dict[str, Any]:
    """Put the counts together: shares and ratios, and whatever should not be there."""
    peak = statistics.mean(one.rate for one in peaks)
    answered = load.answers.get("200", 0)
    missed = load.answers.get("504", 0)
    refused = sum(load.answers.get(status, 0) for status in ("429", "503"))
    late = sum(waited > probe.timeout_ms / 1000 for waited in probe.accepted)
    return {
        "peak_rate": peak,
        "offered_times": load.requests / load.seconds / peak,
        "rate": answered / load.seconds,
        "of_peak": answered / load.seconds / peak,
        "in_time": answered / (answered + missed) if answered + missed else 0.0,
        "refused": refused,
        "unexplained": load.unexplained,
        "other_answers": {
            status: count
            for status, count in load.answers.items()
            if status not in ("200", "429", "503", "504")
        },
        "broken": load.broken,
        "probe": {
            "accepted": len(probe.accepted),
            "late": late,
            "longest_ms": 1000 * max(probe.accepted, default=0.0),
            "other": probe.other,
        },
    }
