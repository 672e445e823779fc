"""A model folder behind HTTP: a small FastAPI application and the process that runs it.

`create_app` builds the application for tests, for another ASGI server or for mounting; `serve` runs it
with uvicorn until it is told to stop. Neither imports torch or transformers: what is served is an ONNX
folder made by `companion export`.

Each name is imported when it is first used: a load test needs no server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.deployment.app import create_app
    from companion.deployment.configuration import ServerSettings
    from companion.deployment.schemas import Limits
    from companion.deployment.server import serve

__all__ = ["Limits", "ServerSettings", "create_app", "serve"]

_HOMES = {"Limits": "schemas", "ServerSettings": "configuration", "create_app": "app", "serve": "server"}


def __getattr__(name: str) -> Any:
    """Import a name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names for completion."""
    return sorted({*globals(), *__all__})
