"""The description of the server at `/openapi.json`: every route, and every status that it can answer with."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from companion.deployment.gate import KEY_HEADER, OPEN_ROUTES
from companion.deployment.problems import MEDIA_TYPE
from companion.deployment.schemas import Limits, PredictRequest, Problem

__all__ = ["describe"]

_REFERENCE = "#/components/schemas/{model}"
_REQUEST_ID = {
    "description": "The id of the request, for the log.",
    "required": True,
    "schema": {"type": "string"},
}
_RETRY = {"description": "Seconds to wait, where waiting helps.", "schema": {"type": "string"}}
_CHALLENGE = {"description": "How to authenticate.", "required": True, "schema": {"type": "string"}}


def describe(
    app: FastAPI,
    limits: Limits,
    *,
    model_name: str,
    keys: bool,
    rates: bool,
    admin_routes: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Describe an application: what FastAPI writes, plus problem documents, keys, quotas and limits.

    Parameters
    ----------
    app : FastAPI
    limits : Limits
        Those in force.
    model_name : str
        The one name that KServe's addresses take.
    keys, rates : bool
        Whether the server asks for keys, and whether it counts.
    admin_routes : frozenset of str
        Those that control a rollout; empty without one.

    Returns
    -------
    dict
        OpenAPI 3.1.
    """
    schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    _add_schemas(schema["components"]["schemas"], limits)
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            if path in admin_routes:
                operation["security"] = [{"admin": []}]
            elif path not in OPEN_ROUTES:
                if keys:
                    responses["401"] = {"description": "A problem document"}
                    operation["security"] = [{"bearer": []}, {"header": []}]
                if rates:
                    responses["429"] = {"description": "A problem document"}
            for status, response in responses.items():
                _complete(status, response)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path" and parameter["name"] == "name":
                    parameter["schema"]["enum"] = [model_name]
            operation["responses"] = dict(sorted(responses.items()))
    schemes: dict[str, Any] = {}
    if keys:
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        schemes["header"] = {"type": "apiKey", "in": "header", "name": KEY_HEADER}
    if admin_routes:
        from companion.deployment.rollout.admin import ADMIN_HEADER

        _add_rollout(schema["paths"], admin_routes)
        schemes["admin"] = {"type": "apiKey", "in": "header", "name": ADMIN_HEADER}
    if schemes:
        schema["components"]["securitySchemes"] = schemes
    return schema


def _add_rollout(paths: dict[str, Any], admin_routes: frozenset[str]) -> None:
    """Describe the headers that a rollout reads and writes."""
    from companion.deployment.rollout.headers import STICKY_HEADER, VERSION_HEADER, WISH_HEADER

    wish = {"description": "The version that shall answer.", "schema": {"enum": ["live", "candidate"]}}
    sticky = {"description": "The same value gets the same version.", "schema": {"type": "string"}}
    version = {"description": "The version that answered.", "schema": {"type": "string"}}
    for path, methods in paths.items():
        if path in admin_routes or "post" not in methods:
            continue
        operation = methods["post"]
        for name, described in ((WISH_HEADER, wish), (STICKY_HEADER, sticky)):
            parameter = {"name": name, "in": "header", "required": False, **described}
            operation.setdefault("parameters", []).append(parameter)
        operation["responses"]["200"]["headers"][VERSION_HEADER] = version


def _complete(status: str, response: dict[str, Any]) -> None:
    headers = response.setdefault("headers", {})
    headers["X-Request-ID"] = _REQUEST_ID
    if int(status) < 400:
        return
    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    if status in ("429", "503"):
        headers["Retry-After"] = _RETRY
    if status == "401":
        headers["WWW-Authenticate"] = _CHALLENGE


def _add_schemas(components: dict[str, Any], limits: Limits) -> None:
    for model in (Problem, PredictRequest):
        described = model.model_json_schema(ref_template=_REFERENCE)
        components.update(described.pop("$defs", {}))
        components[model.__name__] = described
    properties = components["PredictRequest"]["properties"]
    properties["text"]["maxLength"] = limits.characters
    properties["pair"]["anyOf"][0]["maxLength"] = limits.characters
    components["BatchRequest"]["properties"]["items"]["maxItems"] = limits.batch_texts
