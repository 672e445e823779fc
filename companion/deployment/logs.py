"""Structured logs: one line per request, and the server's own messages, as JSON or as text.

A request's line says who, what, how long and how it ended. It never holds a text, an answer or a key.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from companion.deployment.configuration import LogFormat, ServerSettings
from companion.deployment.gate import OPEN_ROUTES
from companion.deployment.lines import LineFile
from companion.deployment.notes import RequestNotes

__all__ = ["RequestLog", "messages_logged", "open_log"]


class RequestLog:
    """A `companion.deployment.notes.Recorder` that writes a line for every request.

    Probes and Prometheus ask every few seconds: their lines are written only when something was wrong.

    Parameters
    ----------
    lines : LineFile
        Where to.
    form : {"text", "json"}
        ``text`` is logfmt: ``key=value`` pairs.
    """

    def __init__(self, lines: LineFile, form: LogFormat = "json") -> None:
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(lines),  # type: ignore[arg-type]
            processors=_stamped(form),
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
        )

    def begin(self, notes: RequestNotes) -> None:
        """Do nothing: the line is written at the end."""

    def end(self, notes: RequestNotes, status: int, seconds: float) -> None:
        """Write the line."""
        if notes.route in OPEN_ROUTES and status < 400:
            return
        self._log.info(
            "request",
            method=notes.method,
            route=notes.route,
            status=status,
            code=notes.code,
            ms=round(1000 * seconds, 2),
            request_id=notes.request_id,
            key=notes.key,
            texts=sum(notes.texts.values()),
            model_version=notes.model_version,
        )


@contextmanager
def messages_logged(settings: ServerSettings) -> Iterator[None]:
    """Write what the server and its libraries log, as the settings say, for the length of a block.

    Only warnings and worse: a line per request is `RequestLog`'s.

    Raises
    ------
    OSError
        If the log file cannot be opened.
    """
    lines = open_log(settings)
    handler = logging.StreamHandler(lines)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_formatter(settings.log_format))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        lines.close()


def open_log(settings: ServerSettings) -> LineFile:
    """Open the log file of the settings, or stderr."""
    form = settings.log_format
    lost = '{{"event": "log lines were lost", "lines": {}}}' if form == "json" else "{} log lines were lost"
    return LineFile(settings.log_file, lost=lost.format)


def _formatter(form: LogFormat) -> logging.Formatter:
    if form == "text":
        return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name],
        processors=[
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *_stamped(form),
        ],
    )


def _stamped(form: LogFormat) -> list[Processor]:
    """Return the processors that add the time and write the line."""
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    if form == "json":
        return [_level, stamp, structlog.processors.JSONRenderer(json.dumps, ensure_ascii=False)]
    order = ["time", "event"]
    return [stamp, structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True)]


def _level(logger: Any, method: str, event: EventDict) -> EventDict:
    """Name the level of a line that has none yet."""
    event.setdefault("level", method)
    return event
