"""A model folder behind HTTP: a small FastAPI application and the process that runs it.

`create_app` builds the application for tests, for another ASGI server or for mounting; `serve` runs it
with uvicorn until it is told to stop. Neither imports torch or transformers: what is served is an ONNX
folder made by `companion export`.
"""

from __future__ import annotations

from companion.deployment.app import create_app
from companion.deployment.configuration import ServerSettings
from companion.deployment.schemas import Limits
from companion.deployment.server import serve

__all__ = ["Limits", "ServerSettings", "create_app", "serve"]
