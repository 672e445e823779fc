"""Who asks, read from the headers of a request: a pure ASGI middleware."""

from __future__ import annotations

from typing import get_args

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from companion.deployment.notes import notes_of
from companion.deployment.problems import INVALID_INPUT, ProblemError, respond
from companion.deployment.rollout.routing import Caller, Wish, calling

__all__ = ["STICKY_HEADER", "VERSION_HEADER", "WISH_HEADER", "RolloutCaller"]

STICKY_HEADER = "X-Sticky-ID"
"""The same value always gets the same version, as long as the share does not shrink."""

WISH_HEADER = "X-Rollout"
"""``live`` or ``candidate``: the version that shall answer this request."""

VERSION_HEADER = "X-Model-Version"
"""Of an answer: the version that gave it; of a batch, the one that gave its last answer."""


class RolloutCaller:
    """Tell the rollout who asks. Put it inside of the middleware that gives requests their ids.

    Parameters
    ----------
    app : ASGIApp
    sticky_header : str
        Header with what stays the same for one caller. Requests without it are dealt out one by one, by
        their request ids.
    guarded : tuple of str
        How the paths begin that ask a version. Others pass through untouched.
    """

    def __init__(
        self, app: ASGIApp, sticky_header: str = STICKY_HEADER, *, guarded: tuple[str, ...] = ("/",)
    ) -> None:
        self.app = app
        self._sticky_header = sticky_header
        self._guarded = guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (see the ASGI specification)."""
        if scope["type"] != "http" or not scope["path"].startswith(self._guarded):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id: str = scope["state"]["request_id"]
        try:
            wish = _wish(headers.get(WISH_HEADER))
        except ProblemError as error:
            await respond(error, scope)(scope, receive, send)
            return

        async def send_with_version(message: Message) -> None:
            version = notes_of(scope).model_version
            if message["type"] == "http.response.start" and version is not None:
                MutableHeaders(scope=message)[VERSION_HEADER] = version
            await send(message)

        with calling(Caller(headers.get(self._sticky_header) or request_id, wish)):
            await self.app(scope, receive, send_with_version)


def _wish(value: str | None) -> Wish | None:
    if value is None:
        return None
    for known in get_args(Wish):
        if value.strip().lower() == known:
            return known  # type: ignore[no-any-return]
    raise ProblemError(
        INVALID_INPUT,
        f"The header {WISH_HEADER} must be one of: {', '.join(get_args(Wish))}; or leave it out.",
    )
