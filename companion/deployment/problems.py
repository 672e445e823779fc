"""Errors that a client can read: RFC 9457 `application/problem+json`, one shape for every failure.

The table `PROBLEMS` lists everything that can go wrong. A client branches on `code` (or on `type`, the
same thing as a URI) and shows `detail` to people. The text of an exception never reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from companion.deployment.notes import notes_of
from companion.deployment.schemas import InputError, Problem

MEDIA_TYPE = "application/problem+json"
KSERVE_PREFIX = "/v2"
"""Under it, a problem repeats `detail` as `error`, where KServe's clients look for it."""
MAX_ERRORS = 16
"""Longest `errors` list that is sent back: a body with ten thousand unknown fields gets a short answer."""
MAX_NAME = 64
"""Longest field name, in characters, that is repeated to the client."""


@dataclass(frozen=True)
class ProblemType:
    """One kind of failure: its stable code, its HTTP status, and a title that never varies."""

    code: str
    status: int
    title: str

    @property
    def uri(self) -> str:
        """The `type` member: a URN, because there is no page behind it to keep alive."""
        return f"urn:companion:problem:{self.code}"


UNAUTHORIZED = ProblemType("unauthorized", 401, "This address asks for an API key")
ADMIN_KEY_REQUIRED = ProblemType("admin-key-required", 401, "This address asks for the admin key")
NOT_FOUND = ProblemType("not-found", 404, "There is nothing at this address")
MODEL_NOT_FOUND = ProblemType("model-not-found", 404, "There is no model of this name")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "This address does not take this method")
ROLLOUT_CONFLICT = ProblemType("rollout-conflict", 409, "The stage of the rollout does not allow this")
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "The body is too large")
BATCH_TOO_LARGE = ProblemType("batch-too-large", 413, "The batch is too large")
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The body is not declared as JSON")
MALFORMED_JSON = ProblemType("malformed-json", 422, "The body is not JSON")
INVALID_INPUT = ProblemType("invalid-input", 422, "The request does not fit the schema")
VERSION_REFUSED = ProblemType("version-refused", 422, "This version cannot be used")
RATE_LIMITED = ProblemType("rate-limited", 429, "The caller's quota is used up")
INTERNAL_ERROR = ProblemType("internal-error", 500, "The server failed to answer")
NOT_READY = ProblemType("not-ready", 503, "The model is still loading")
MODEL_FAILED = ProblemType("model-failed", 503, "The model could not be loaded")
OVERLOADED = ProblemType("overloaded", 503, "The server is too busy")
STUCK = ProblemType("stuck", 503, "The model does not get on")
DRAINING = ProblemType("draining", 503, "The server is about to stop")
DEADLINE_EXCEEDED = ProblemType("deadline-exceeded", 504, "The request ran out of time")

PROBLEMS: tuple[ProblemType, ...] = (
    UNAUTHORIZED,
    ADMIN_KEY_REQUIRED,
    NOT_FOUND,
    MODEL_NOT_FOUND,
    METHOD_NOT_ALLOWED,
    ROLLOUT_CONFLICT,
    BODY_TOO_LARGE,
    BATCH_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    MALFORMED_JSON,
    INVALID_INPUT,
    VERSION_REFUSED,
    RATE_LIMITED,
    INTERNAL_ERROR,
    NOT_READY,
    MODEL_FAILED,
    OVERLOADED,
    STUCK,
    DRAINING,
    DEADLINE_EXCEEDED,
)


class ProblemError(HTTPException):
    """Raise anywhere inside a request to answer with a problem.

    It is an `HTTPException` because FastAPI lets that class alone through while it reads a body.
    """

    def __init__(
        self,
        problem: ProblemType,
        detail: str,
        *,
        errors: Sequence[InputError] = (),
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        retry = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        super().__init__(problem.status, detail, headers={**retry, **(headers or {})} or None)
        self.problem = problem
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s


def problem_document(error: ProblemError, request_id: str) -> Problem:
    """Describe `error` as the document that RFC 9457 asks for."""
    return Problem(
        type=error.problem.uri,
        title=error.problem.title,
        status=error.problem.status,
        detail=error.detail,
        code=error.problem.code,
        request_id=request_id,
        retry_after_ms=None if error.retry_after_s is None else 1000 * error.retry_after_s,
        errors=list(error.errors) or None,
    )


def respond(error: ProblemError, scope: Scope) -> Response:
    """Answer the request of this scope with `error`, and note its code for log and metrics."""
    notes = notes_of(scope)
    notes.code = error.problem.code
    body = problem_document(error, notes.request_id)
    if scope["path"].startswith(KSERVE_PREFIX):
        body.error = body.detail
    content = body.model_dump_json(exclude_none=True)
    return Response(content, status_code=error.problem.status, headers=error.headers, media_type=MEDIA_TYPE)


async def on_http_exception(request: Request, exc: HTTPException) -> Response:
    """Answer every `HTTPException`: our own, and those that the router or FastAPI raise."""
    return respond(_as_problem(exc), request.scope)


async def on_validation_error(request: Request, exc: RequestValidationError) -> Response:
    """Answer a body that is not JSON (415, 422) or that does not fit the schema (422)."""
    return respond(_explain(exc), request.scope)


def _as_problem(exc: HTTPException) -> ProblemError:
    if isinstance(exc, ProblemError):
        return exc
    if exc.status_code == 400:  # FastAPI's word for bytes that are not UTF-8, and for endless nesting
        return ProblemError(MALFORMED_JSON, "The body must be JSON in UTF-8, without deep nesting.")
    known = {problem.status: problem for problem in (NOT_FOUND, METHOD_NOT_ALLOWED, BODY_TOO_LARGE)}
    error = ProblemError(known.get(exc.status_code, INTERNAL_ERROR), "/openapi.json lists what is answered.")
    error.headers = exc.headers  # the router's Allow
    return error


def _explain(exc: RequestValidationError) -> ProblemError:
    # FastAPI leaves the body as bytes when the content type is not JSON.
    if isinstance(exc.body, bytes):
        return ProblemError(UNSUPPORTED_MEDIA_TYPE, "Send the header 'Content-Type: application/json'.")
    found = exc.errors()
    for error in found:
        if error["type"] == "json_invalid":
            reason, position = error["ctx"]["error"], error["loc"][-1]
            return ProblemError(MALFORMED_JSON, f"Not valid JSON at character {position}: {reason}.")
    return invalid_input(found)


def invalid_input(found: Sequence[Mapping[str, Any]], at: Sequence[str] = ()) -> ProblemError:
    """Make one problem of all that pydantic found wrong in the body, or in the part of it at a path.

    Parameters
    ----------
    found : sequence of mapping
        As `pydantic.ValidationError.errors` gives them.
    at : sequence of str
        The path to what was validated.
    """
    errors = [_input_error(error, at) for error in found[:MAX_ERRORS]]
    detail = "; ".join(f"{error.pointer}: {error.detail}" for error in errors[:3])
    return ProblemError(INVALID_INPUT, detail, errors=errors)


def _input_error(error: Mapping[str, Any], at: Sequence[str]) -> InputError:
    path = [*at, *(str(part) for part in error["loc"] if part != "body")]
    # A name of a megabyte is not sent back: the pointer then stays at the whole.
    pointer = json_pointer(path if all(len(part) <= MAX_NAME for part in path) else at)
    return InputError(pointer=pointer, code=str(error["type"]), detail=str(error["msg"]))


def json_pointer(path: Sequence[str]) -> str:
    """Write `path` as a JSON Pointer in a URI fragment (RFC 6901, section 6), as RFC 9457 shows it.

    The result is ASCII, whatever the client called its fields: half of a surrogate pair included.
    """
    escaped = (part.replace("~", "~0").replace("/", "~1") for part in path)
    return "#" + "".join("/" + quote(part, safe="~", errors="backslashreplace") for part in escaped)
