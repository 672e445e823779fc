"""Metrics for Prometheus: requests, texts, latency, and what the batcher tells.

Every instance has a registry of its own. Where `PROMETHEUS_MULTIPROC_DIR` names a folder before the process
starts, each worker writes its numbers there and any of them answers for all (prometheus-client's multiprocess
mode). Labels hold names from the program, never anything a client sent, so the number of series is bounded.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from companion.deployment.notes import RequestNotes

__all__ = [
    "ALARMING",
    "METRICS_FOLDER",
    "OPEN_METRICS",
    "SECONDS",
    "TEXT_FORMAT",
    "ServerMetrics",
    "bury_the_dead",
]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bounds of the latency buckets: close together from 5 to 100 ms, where a small encoder on a CPU answers."""
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
TEXT_FORMAT = CONTENT_TYPE_PLAIN_0_0_4
OPEN_METRICS = openmetrics.CONTENT_TYPE_LATEST
ALARMING = (
    "rates-counted-alone",
    "redis-opened",
    "redis-unavailable",
    "rollout-rolled-back-automatically",
)
"""Events that alert rules look for. Their series begin at 0, or Prometheus would see no increase."""
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder in which several workers keep their numbers."""


class ServerMetrics:
    """A `companion.deployment.notes.Recorder` and a `companion.deployment.observing.ServingObserver`."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "companion_requests",
            "Requests that have ended, by route, status and code (ok, or the problem's).",
            ("method", "route", "status", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "companion_request_seconds",
            "Time from a request's headers to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "companion_requests_in_flight",
            "Requests that have begun and not ended.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._texts = Counter(
            "companion_texts",
            "Texts that were asked about, by what became of them.",
            ("code",),
            registry=registry,
        )
        self._answers = Counter(
            "companion_answers",
            "Texts that were answered, by the likeliest label and the version that said so.",
            ("label", "model_version"),
            registry=registry,
        )
        self._model = Gauge(
            "companion_model_info",
            "1 for the version that answered last, 0 for those before it.",
            ("model_version",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._ready = Gauge(
            "companion_ready",
            "1 while /health/ready says so, else 0.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self._version: str | None = None
        self._add_queue(registry)

    def _add_queue(self, registry: CollectorRegistry) -> None:
        self._queue_length = Gauge(
            "companion_queue_length", "Texts that wait.", multiprocess_mode="livesum", registry=registry
        )
        self._queue_age = Gauge(
            "companion_queue_age_seconds",
            "How long the oldest text that waits has waited.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._waited = Histogram(
            "companion_queue_wait_seconds",
            "How long a text waited before its run began.",
            buckets=SECONDS,
            registry=registry,
        )
        self._batch_texts = Histogram(
            "companion_batch_texts", "Texts that ran together.", buckets=BATCH_SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "companion_batch_seconds", "How long one run took.", buckets=SECONDS, registry=registry
        )
        self._tokens = Counter("companion_tokens", "Tokens that ran, without padding.", registry=registry)
        self._padded = Counter("companion_padded_tokens", "Tokens that ran, with padding.", registry=registry)
        self._events = Counter(
            "companion_events", "What else happened, by name.", ("event",), registry=registry
        )
        for name in ALARMING:
            self._events.labels(name)

    def begin(self, notes: RequestNotes) -> None:
        """Count a request as being in flight."""
        self._in_flight.inc()

    def end(self, notes: RequestNotes, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._in_flight.dec()
        self._requests.labels(notes.method, notes.route, str(status), notes.code).inc()
        self._seconds.labels(notes.route).observe(seconds)
        for code, count in notes.texts.items():
            self._texts.labels(code).inc(count)
        for (label, version), count in notes.labels.items():
            self._answers.labels(label, version).inc(count)
        if notes.model_version is not None:
            self.model(notes.model_version)

    def model(self, version: str) -> None:
        """Say which model answers from now on."""
        if version != self._version:
            if self._version is not None:
                self._model.labels(self._version).set(0)
            self._model.labels(version).set(1)
            self._version = version

    def ready(self, ready: bool) -> None:
        """Say whether questions are answered."""
        self._ready.set(ready)

    def queue(self, length: int, oldest_age_s: float) -> None:
        """Take the state of the queue."""
        self._queue_length.set(length)
        self._queue_age.set(oldest_age_s)

    def waited(self, seconds: float) -> None:
        """Take how long one question waited."""
        self._waited.observe(seconds)

    def batch(self, *, texts: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Take one run of the model."""
        self._batch_texts.observe(texts)
        self._batch_seconds.observe(seconds)
        self._tokens.inc(tokens)
        self._padded.inc(padded_tokens)

    def event(self, name: str) -> None:
        """Count something by name."""
        self._events.labels(name).inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """Write all metrics down; with several workers, those of all of them.

        Parameters
        ----------
        accept : str
            The request's `Accept` header: with OpenMetrics among it, OpenMetrics is written.

        Returns
        -------
        content : bytes
        media_type : str
        """
        registry = self._registry
        if folder := os.environ.get(METRICS_FOLDER):
            bury_the_dead(Path(folder))
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        if "application/openmetrics-text" in accept:
            return openmetrics.generate_latest(registry), OPEN_METRICS  # type: ignore[no-untyped-call]
        return generate_latest(registry), TEXT_FORMAT


def bury_the_dead(folder: Path) -> None:
    """Take the gauges of workers that have ended out of the multiprocess folder; their counters stay."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*_*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another worker was asked at this moment, and was faster
                multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:  # it lives, and is somebody else's
            continue
