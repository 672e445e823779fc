"""The application: one model behind a few addresses, a gate in front, a problem document for every error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.routing import Route

from companion.deployment import kserve, predicting
from companion.deployment.assembly import AnswererChain, Load
from companion.deployment.batching import RequestDeadline
from companion.deployment.configuration import ServerSettings
from companion.deployment.gate import OPEN_ROUTES, AccessGate
from companion.deployment.keys import KeyRing
from companion.deployment.logs import RequestLog, open_log
from companion.deployment.metrics import OPEN_METRICS, TEXT_FORMAT, ServerMetrics
from companion.deployment.middleware import BodyLimit, RequestContext
from companion.deployment.notes import Recorder, RouteNames
from companion.deployment.openapi import describe
from companion.deployment.predicting import errors
from companion.deployment.problems import on_http_exception, on_validation_error
from companion.deployment.rates import RateLimiter, RedisWindows
from companion.deployment.schemas import Limits, Live, Ready
from companion.deployment.service import ModelService, ServedModel

if TYPE_CHECKING:
    from companion.deployment.rollout.versions import Inspect

PREDICTING = ("/predict", "/v2/models/")
"""How addresses begin that need the model: a busy server refuses them before it reads their body."""
router = APIRouter()

TRACING: TelemetryConfig = {"auto_configure": True, "metrics": False, "logs": False, "operation_spans": False}
"""FastAPI's own OpenTelemetry: one span per request, once `OTEL_EXPORTER_OTLP_ENDPOINT` says where to and the
SDK is installed; else nothing, at no cost. Its logs stay off, for they carry the texts of exceptions, and its
metrics too: `/metrics` has them."""


def load_onnx(folder: Path, threads: int) -> ServedModel:
    """Open an exported folder with onnxruntime. The heavy imports happen here, off the event loop."""
    from companion.inference.predictor import OnnxPredictor

    return OnnxPredictor(folder, threads=threads)


def create_app(
    folder: Path,
    settings: ServerSettings | None = None,
    *,
    load: Load = load_onnx,
    inspect: Inspect | None = None,
    **changes: Any,
) -> FastAPI:
    """Build the application that serves an exported model.

    Nothing is loaded yet: that begins with the lifespan, in a worker thread, so that the port opens and
    `/health/live` answers at once. `/health/ready` turns from 503 to 200 after one real inference.

    Parameters
    ----------
    folder : Path
        A folder made by `companion.inference.export`.
    settings : ServerSettings, optional
        Limits, keys, rates, logs, caches, a rollout. Host and port are not read here.
    load : callable
        Opens the folder; exchange it to serve another kind of model.
    inspect : callable, optional
        Tells a rollout what is in a folder, before it is opened; to be exchanged together with `load`.
    **changes
        Fields of the settings that are different, such as ``limits=Limits(characters=500)``; None leaves a
        field as it is.

    Returns
    -------
    FastAPI
        An ASGI application. A folder that cannot be loaded shows as 503 `model-failed`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the settings cannot work, or a file of keys, the admin key or a certificate is missing or wrong.
    OSError
        If the log file or the folder of the prediction log cannot be opened.
    """
    settings = (settings or ServerSettings()).but(**changes)
    batching = settings.batching
    keys = KeyRing(settings.api_keys) if settings.api_keys else None
    redis = RedisWindows(settings.redis) if settings.redis else None
    metrics = ServerMetrics()
    limiter = RateLimiter(settings.rate, shared=redis, event=metrics.event) if settings.rate else None
    limits = _affordable(settings.limits, limiter)
    chain = AnswererChain(Path(folder), settings, load=load, inspect=inspect, observer=metrics)
    lines = open_log(settings) if settings.log_requests else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(chain.service.load())
        yield
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        await chain.aclose()
        if redis is not None:
            await redis.aclose()
        if lines is not None:
            lines.close()

    app = FastAPI(
        title="companion",
        summary="Texts in, answers out.",
        version="1",
        lifespan=lifespan,
        # The interactive pages fetch scripts from elsewhere; /openapi.json opens in any viewer.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=TRACING,
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_validation_error},
    )
    app.state.service = chain.service
    app.state.answerer = chain.answerer
    app.state.limits = limits
    app.state.metrics = metrics
    app.state.model_name = settings.model_name
    routers = [router, predicting.router, kserve.router, *chain.routers]
    for part in routers:
        app.include_router(part)
    names = RouteNames(
        route for part in [app.router, *routers] for route in part.routes if isinstance(route, Route)
    )
    recorders: list[Recorder] = [metrics]
    if lines is not None:
        recorders.append(RequestLog(lines, settings.log_format))
    # The one added last is the outermost.
    app.add_middleware(BodyLimit, max_bytes=limits.body_bytes)
    app.add_middleware(
        RequestDeadline,
        timeout_s=batching.timeout_s,
        longest_timeout_s=batching.longest_timeout_s,
        refuse=chain.service.refusal,
        guarded=PREDICTING,
    )
    for middleware in chain.middlewares:
        app.add_middleware(middleware, guarded=PREDICTING)
    app.add_middleware(AccessGate, keys=keys, limiter=limiter, open_routes=OPEN_ROUTES | chain.admin_routes)
    app.add_middleware(RequestContext, names, recorders)
    app.openapi = _describer(app, settings, limits, chain.admin_routes)  # type: ignore[method-assign]
    return app


def _affordable(limits: Limits, limiter: RateLimiter | None) -> Limits:
    """Let no batch be larger than a whole quota: it could never be answered."""
    if limiter is None:
        return limits
    return replace(limits, batch_texts=min(limits.batch_texts, limiter.amount))


def _describer(
    app: FastAPI, settings: ServerSettings, limits: Limits, admin_routes: frozenset[str]
) -> Callable[[], dict[str, Any]]:
    @cache
    def description() -> dict[str, Any]:
        return describe(
            app,
            limits,
            model_name=settings.model_name,
            keys=settings.api_keys is not None,
            rates=settings.rate is not None,
            admin_routes=admin_routes,
        )

    return description


async def _service(request: Request) -> ModelService:
    # A coroutine: what is none, FastAPI runs in a thread, once for every request.
    service: ModelService = request.app.state.service
    return service


Service = Annotated[ModelService, Depends(_service)]


@router.get("/health/live", operation_id="live", responses=errors(500))
async def live() -> Live:
    """Say that the process runs."""
    return Live()


@router.get("/health/ready", operation_id="ready", responses=errors(500, 503))
async def ready(service: Service) -> Ready:
    """Say whether the model is loaded and gets on."""
    service.check_ready()
    return Ready(model_version=service.model.manifest.model_version)


_FORMATS = {kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in (TEXT_FORMAT, OPEN_METRICS)}
_NUMBERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format, or OpenMetrics", "content": _FORMATS},
    **errors(500),
}


@router.get("/metrics", operation_id="metrics", response_class=PlainTextResponse, responses=_NUMBERS)
def metrics(request: Request) -> Response:  # in a thread: with several workers it reads files
    """Give the numbers that Prometheus collects."""
    numbers: ServerMetrics = request.app.state.metrics
    numbers.ready(request.app.state.service.is_ready)
    content, media_type = numbers.render(request.headers.get("accept", ""))
    return Response(content, media_type=media_type)
