"""What the edge knows about one request: written by whoever learns it, read by log and metrics at its end.

The notes ride in the ASGI scope. Nothing that a client sent as text is ever among them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from starlette.routing import Route
from starlette.types import Scope

from companion.deployment.answering import Answer

__all__ = ["OTHER", "Recorder", "RequestNotes", "RouteNames", "current_request_id", "notes_of"]

OTHER = "other"
"""The one name of every address and method that the server does not have."""
_CURRENT: ContextVar[str | None] = ContextVar("request_id", default=None)
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


@dataclass
class RequestNotes:
    """One request, as far as it is known yet.

    Attributes
    ----------
    request_id : str
    method : str
        An HTTP method, or `OTHER`.
    route : str
        The address as the server wrote it, such as ``/v2/models/{name}``, or `OTHER`.
    key : str or None
        Name of the API key.
    code : str
        ``ok``, or the code of the problem that was answered.
    texts : dict
        How many texts ended how: ``ok`` or the code of a problem, with a count.
    model_version : str or None
        Which model answered.
    labels : dict
        How many texts got which label from which version, by (label, version); a regression has no labels.
    headers : dict
        To be added to the answer.
    charge : callable or None
        Takes more of the caller's quota; set where there is one.
    """

    request_id: str
    method: str = OTHER
    route: str = OTHER
    key: str | None = None
    code: str = "ok"
    texts: dict[str, int] = field(default_factory=dict)
    model_version: str | None = None
    labels: dict[tuple[str, str], int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    charge: Callable[[int], Awaitable[None]] | None = None

    def count(self, code: str) -> None:
        """Note how one text ended."""
        self.texts[code] = self.texts.get(code, 0) + 1

    def answered(self, answer: Answer) -> None:
        """Note that one text was answered, and how."""
        self.count("ok")
        self.model_version = answer.model_version
        if answer.labels:
            likeliest = answer.labels[max(range(len(answer.values)), key=answer.values.__getitem__)]
            key = likeliest, answer.model_version
            self.labels[key] = self.labels.get(key, 0) + 1


class Recorder(Protocol):
    """Is told of every request. Must not raise."""

    def begin(self, notes: RequestNotes) -> None:
        """Take a request whose headers are in."""

    def end(self, notes: RequestNotes, status: int, seconds: float) -> None:
        """Take a request that has ended, after so many seconds."""


class RouteNames:
    """Give a request's address the name that it has in the program, so that names stay few.

    Parameters
    ----------
    routes : iterable of starlette.routing.Route
        All that the server answers.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        listed = list(routes)
        self._fixed = {route.path for route in listed if "{" not in route.path}
        self._patterns = [(route.path_regex, route.path) for route in listed if "{" in route.path]

    def name(self, path: str) -> str:
        """Return the route that a path belongs to, or `OTHER`."""
        if path in self._fixed:
            return path
        return next((name for pattern, name in self._patterns if pattern.match(path)), OTHER)

    def notes(self, scope: Scope, request_id: str) -> RequestNotes:
        """Begin the notes of a request, and leave them in its scope."""
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        notes = RequestNotes(request_id, method, self.name(scope["path"]))
        _CURRENT.set(request_id)  # each request has a task of its own, and so its own context
        scope.setdefault("state", {}).update(request_id=request_id, notes=notes)
        return notes


def notes_of(scope: Scope) -> RequestNotes:
    """Return the notes of the request that this scope belongs to."""
    notes: RequestNotes = scope["state"]["notes"]
    return notes


def current_request_id() -> str | None:
    """Return the id of the request that is being answered, for who has no scope; None outside of one."""
    return _CURRENT.get()
