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


def describe(app: FastAPI, limits: Limits, *, model_name: str, keys: bool, rates: bool) -> dict[str, Any]:
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
            if path not in OPEN_ROUTES:
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
    if keys:
        schema["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
        }
    return schema


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
