"""The short way through the application, for the request that nearly all are: a sound `POST /predict`.

FastAPI's road to a route costs several times what the answer's own handling does, and every request pays it,
on cores that the model needs. This middleware answers what it can be sure of, by the same functions as the
route; whatever is odd in the least goes on to the application, which alone explains errors.
"""

from __future__ import annotations

import json

from pydantic import ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from companion.deployment.predicting import PREDICT, answer_one
from companion.deployment.problems import ProblemError, respond
from companion.deployment.schemas import PredictRequest

__all__ = ["ShortWay"]

_PATH = "/predict"
_JSON = (b"content-type", b"application/json")


class ShortWay:
    """Answer a `POST /predict` whose body is sound; pass everything else on, body included.

    A request that is traced goes on, too: its span is FastAPI's.

    Parameters
    ----------
    app : ASGI application
        Has a route that does the same.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection (see the ASGI specification)."""
        if not _ordinary(scope):
            await self.app(scope, receive, send)
            return
        messages: list[Message] = []
        try:
            body = await _read(receive, messages)
            question = None if body is None else _parse(body)
            said = None if question is None else await answer_one(question, scope)
        except ProblemError as error:  # of a body that is too large, too
            await respond(error, scope)(scope, receive, send)
            return
        if said is None:
            await self.app(scope, _again(messages, receive), send)
            return
        content = said.__pydantic_serializer__.to_json(said)
        await Response(content, media_type="application/json")(scope, receive, send)


def _ordinary(scope: Scope) -> bool:
    return (
        scope["type"] == "http"
        and scope["path"] == _PATH
        and scope["method"] == "POST"
        and not scope.get("root_path")
        and scope.get("fastapi.telemetry") is None
        and _JSON in scope["headers"]
    )


async def _read(receive: Receive, messages: list[Message]) -> bytes | None:
    """Read a whole body; None when the client left before its end. The messages are kept."""
    more = True
    while more:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            return None
        more = message.get("more_body", False)
    return b"".join(message.get("body", b"") for message in messages)


def _parse(body: bytes) -> PredictRequest | None:
    """Read a question as the route would; None for anything that is not one."""
    try:
        return PREDICT.validate_python(json.loads(body))
    except (ValidationError, ValueError, RecursionError):
        return None


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Give out what was read, and then what comes."""
    kept = iter(messages)

    async def receive_again() -> Message:
        for message in kept:
            return message
        return await receive()

    return receive_again
