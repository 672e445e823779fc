"""Two pure ASGI middlewares: one follows a request to its end, the other limits its body.

Neither uses Starlette's `BaseHTTPMiddleware`, which runs the application in a second task and hides
a client that went away.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from companion.deployment.notes import Recorder, RouteNames
from companion.deployment.problems import BODY_TOO_LARGE, INTERNAL_ERROR, ProblemError, respond

logger = logging.getLogger("companion.deployment")

REQUEST_ID_HEADER = "X-Request-ID"
_NO_ANSWER = 499
"""The status, in log and metrics, of a request that got no answer because nobody waited: nginx's word."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Seeded by the system once, where asking it for every id would cost the lock of the interpreter each time.
_IDS = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_IDS.seed)


def request_id(offered: str | None) -> str:
    """Take the client's request id, or make one.

    Only letters, digits, dots, dashes and underscores pass, at most 128 of them: the id is written to a
    log and to a header, and must not be able to forge a line of either.
    """
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered
    return f"{_IDS.getrandbits(128):032x}"


class RequestContext:
    """Give every request an id and notes, and every unforeseen exception a log entry and a plain 500.

    The id is put into `scope["state"]["request_id"]` and into the response's `X-Request-ID`; the notes are
    `companion.deployment.notes.notes_of(scope)`. An exception ends here: it is logged with its traceback,
    and the client learns the id, not the text.

    Parameters
    ----------
    app : ASGI application
    names : RouteNames
        All that the application answers.
    recorders : sequence of Recorder
        Told of every request, such as a log and metrics.
    clock : callable
        Seconds that only go up.
    """

    def __init__(
        self,
        app: ASGIApp,
        names: RouteNames,
        recorders: Sequence[Recorder] = (),
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.app = app
        self._names = names
        self._recorders = tuple(recorders)
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (see the ASGI specification)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identity = request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        notes = self._names.notes(scope, identity)
        status, began = 0, self._clock()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = identity
                headers.update(notes.headers)
            await send(message)

        for recorder in self._recorders:
            recorder.begin(notes)
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed: %s %s", identity, notes.method, notes.route)
            notes.code = INTERNAL_ERROR.code
            if status:  # half an answer is out: let the server cut the connection
                raise
            error = ProblemError(INTERNAL_ERROR, "The request could not be answered; the log has the reason.")
            await respond(error, scope)(scope, receive, send_with_id)
        finally:
            if not status:
                notes.code = "client-gone"
            for recorder in self._recorders:
                recorder.end(notes, status or _NO_ANSWER, self._clock() - began)


class BodyLimit:
    """Refuse a body of more than `max_bytes` bytes with 413, and stop reading it.

    A declared length is judged before anything is read; without one (chunked transfer) the bytes are
    counted as they come. The connection is closed, so that the rest is not read either.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (see the ASGI specification)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isascii() and declared.isdigit() and _exceeds(declared, self.max_bytes):
            await respond(self._error(), scope)(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._error()
            return message

        await self.app(scope, receive_counted, send)

    def _error(self) -> ProblemError:
        detail = f"The body may have at most {self.max_bytes:,} bytes."
        return ProblemError(BODY_TOO_LARGE, detail, headers={"Connection": "close"})


def _exceeds(digits: str, limit: int) -> bool:
    # Python refuses to parse a number of several thousand digits: compare by length first.
    digits = digits.lstrip("0")
    return len(digits) > len(str(limit)) or int(digits or "0") > limit
