"""One deadline for each request, from its header to its response, and an end to it when its client leaves.

A pure ASGI middleware, so that it holds for every address, and for the time in which the body comes in.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from companion.deployment.batching.refusals import too_late
from companion.deployment.problems import INVALID_INPUT, ProblemError, respond

__all__ = ["TIMEOUT_HEADER", "RequestDeadline", "timeout_of"]

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""How long the client waits, in milliseconds from the moment the server has read the head of the request.

A duration, not a time of day: it needs no agreement between two clocks. Its unit is in its name, as in
Envoy's `X-Envoy-Upstream-Rq-Timeout-Ms`, whose meaning it shares; there is no standard header for it."""

_MILLISECONDS = re.compile(r"[0-9]{1,18}")


def timeout_of(header: str | None, *, default_s: float, longest_s: float) -> float:
    """Read how long a client waits.

    Parameters
    ----------
    header : str or None
        The value of `TIMEOUT_HEADER`.
    default_s : float
        Without a header.
    longest_s : float
        Whoever waits longer is answered within this time all the same.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    ProblemError
        422 `invalid-input` for anything but a whole number above 0.
    """
    if header is None:
        return default_s
    if not _MILLISECONDS.fullmatch(header) or int(header) == 0:
        found = header[:32].encode("ascii", "backslashreplace").decode()
        detail = f"The header {TIMEOUT_HEADER} is '{found}', expected a whole number of milliseconds above 0."
        raise ProblemError(INVALID_INPUT, detail)
    return min(int(header) / 1000, longest_s)


class RequestDeadline:
    """End every request when its time is over or its client has left, whatever it is doing.

    The deadline is put into `scope["state"]["deadline"]`, by `clock`. At that time the application is
    cancelled and the client gets 504 `deadline-exceeded`, also when its own body is what has not come. When
    the client leaves first, the application is cancelled as well, and nothing is sent.

    Parameters
    ----------
    app : ASGI application
    timeout_s, longest_timeout_s : float
        As for `timeout_of`.
    refuse : callable, optional
        Asked before the body of a guarded request is read; what it returns is the answer. A server with too
        much to do refuses at once, for the price of a look at the line.
    guarded : tuple of str
        How the paths begin whose POST requests need the model.
    clock : callable
        Seconds, never going back.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        timeout_s: float,
        longest_timeout_s: float,
        refuse: Callable[[], ProblemError | None] = lambda: None,
        guarded: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.app = app
        self._timeout_s = timeout_s
        self._longest_timeout_s = longest_timeout_s
        self._refuse = refuse
        self._guarded = guarded
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (see the ASGI specification)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        error = await self._handle(exchange, scope)
        if error is not None and not exchange.started:
            await respond(error, scope)(scope, receive, send)

    async def _handle(self, exchange: _Exchange, scope: Scope) -> ProblemError | None:
        offered = Headers(scope=scope).get(TIMEOUT_HEADER)
        try:
            timeout_s = timeout_of(offered, default_s=self._timeout_s, longest_s=self._longest_timeout_s)
        except ProblemError as error:
            return error
        guarded = scope["method"] == "POST" and scope["path"].startswith(self._guarded)
        if guarded and (refused := self._refuse()):
            return refused
        scope["state"]["deadline"] = self._clock() + timeout_s
        return await exchange.run(self.app, scope, timeout_s)


class _Exchange:
    """One request and its response, which a timer or the client's leaving can cut short."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.started = False
        self._finished = False
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[object] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopped = False
        self._error: ProblemError | None = None

    async def run(self, app: ASGIApp, scope: Scope, timeout_s: float) -> ProblemError | None:
        """Run the application; return what the client has to be told if it was cut short, else None."""
        self._task = task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(timeout_s, self._time_over)
        try:
            await app(scope, self._receive_and_watch, self._send_and_note)
        except asyncio.CancelledError:
            # Cancelled by us, unless someone outside cancels as well: that goes on.
            if not self._stopped or task.uncancel() > 0:
                raise
        finally:
            timer.cancel()
            if self._watching is not None:
                self._watching.cancel()
        return self._error

    async def _receive_and_watch(self) -> Message:
        if self._watching is not None:  # the body is complete: the only news can be that the client left
            await asyncio.wait([self._watching])
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._watching = asyncio.create_task(self._watch())
        return message

    async def _send_and_note(self, message: Message) -> None:
        self.started = True
        self._finished = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def _watch(self) -> None:
        # One message is enough: behind a whole body there is no other.
        if (await self._receive())["type"] == "http.disconnect":
            self._stop()

    def _time_over(self) -> None:
        if self._stopped:
            return
        self._error = too_late()
        if self._watching is None:  # the rest of the body may still come: not as the next request
            self._error.headers = {"Connection": "close"}
        self._stop()

    def _stop(self) -> None:
        # A server also says "disconnect" after a complete response; and one of two reasons is enough.
        if not (self._finished or self._stopped) and self._task is not None:
            self._stopped = True
            self._task.cancel()
