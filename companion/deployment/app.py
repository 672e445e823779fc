"""The application: three addresses, one model, and a problem document for everything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from companion.deployment.answering import Question
from companion.deployment.batching import BatchingLimits, RequestDeadline
from companion.deployment.middleware import BodyLimit, RequestContext
from companion.deployment.problems import (
    INVALID_INPUT,
    MEDIA_TYPE,
    ProblemError,
    on_http_exception,
    on_validation_error,
)
from companion.deployment.schemas import (
    Classification,
    InputError,
    Limits,
    Live,
    PredictRequest,
    Problem,
    Ready,
    Regression,
)
from companion.deployment.service import ModelService, ServedModel
from companion.settings import get_settings

Load = Callable[[Path, int], ServedModel]
PREDICTING = ("/predict",)
"""How addresses begin that need the model: a busy server refuses them before it reads their body."""
router = APIRouter()


def load_onnx(folder: Path, threads: int) -> ServedModel:
    """Open an exported folder with onnxruntime. The heavy imports happen here, off the event loop."""
    from companion.inference.predictor import OnnxPredictor

    return OnnxPredictor(folder, threads=threads)


def create_app(
    folder: Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    batching: BatchingLimits | None = None,
    load: Load = load_onnx,
) -> FastAPI:
    """Build the application that serves one exported model.

    Nothing is loaded yet: that begins with the lifespan, in a worker thread, so that the port opens and
    `/health/live` answers at once. `/health/ready` turns from 503 to 200 after one real inference.

    Parameters
    ----------
    folder : Path
        A folder made by `companion.inference.export`.
    workers : int, optional
        Batches that run at the same time. Default: one for each thread, because on a processor two runs of
        one thread do more than one run of two.
    threads : int, optional
        Threads to compute with, shared among the workers, at least one for each. Default: the settings'.
    limits : Limits, optional
        Largest text and body.
    batching : BatchingLimits, optional
        How much may wait, and for how long.
    load : callable
        Opens the folder, for runs of so many threads each; exchange it to serve another kind of model.

    Returns
    -------
    FastAPI
        An ASGI application. A folder that cannot be loaded shows as 503 `model-failed`.

    Raises
    ------
    ValueError
        If there would be no worker or no thread.
    """
    limits, batching = limits or Limits(), batching or BatchingLimits()
    workers, threads_each = share(workers, threads)
    service = ModelService(lambda: load(Path(folder), threads_each), workers=workers, limits=batching)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(service.load())
        yield
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        await service.aclose()

    app = FastAPI(
        title="companion",
        summary="One text in, one answer out.",
        version="1",
        lifespan=lifespan,
        # The interactive pages fetch scripts from elsewhere; /openapi.json opens in any viewer.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_validation_error},
    )
    app.state.service = service
    app.state.limits = limits
    app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=limits.body_bytes)
    app.add_middleware(
        RequestDeadline,
        timeout_s=batching.timeout_s,
        longest_timeout_s=batching.longest_timeout_s,
        refuse=service.refusal,
        guarded=PREDICTING,
    )
    app.add_middleware(RequestContext)  # added last: the outermost
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def share(workers: int | None, threads: int | None) -> tuple[int, int]:
    """Share threads among workers.

    Returns
    -------
    workers, threads_each : int

    Raises
    ------
    ValueError
        If one of the two is below 1.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1.")
    threads = threads or get_settings().threads
    workers = workers or threads
    return workers, max(1, threads // workers)


async def _service(request: Request) -> ModelService:
    # A coroutine: what is none, FastAPI runs in a thread, once for every request.
    service: ModelService = request.app.state.service
    return service


Service = Annotated[ModelService, Depends(_service)]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": "A problem document"} for status in statuses}


@router.get("/health/live", operation_id="live", responses=_errors(500))
async def live() -> Live:
    """Say that the process runs."""
    return Live()


@router.get("/health/ready", operation_id="ready", responses=_errors(500, 503))
async def ready(service: Service) -> Ready:
    """Say whether the model is loaded and gets on."""
    service.check_ready()
    return Ready(model_version=service.model.manifest.model_version)


@router.post("/predict", operation_id="predict", responses=_errors(413, 415, 422, 500, 503, 504))
async def predict(body: PredictRequest, request: Request, service: Service) -> Classification | Regression:
    """Classify one text, or one pair of texts."""
    _check_length(body, request.app.state.limits)
    question = Question(body.text, body.pair)
    answer = await service.answer(question, deadline=request.state.deadline)
    version, request_id = answer.model_version, request.state.request_id
    if not answer.labels:
        return Regression(score=answer.values[0], model_version=version, request_id=request_id)
    probabilities = dict(zip(answer.labels, answer.values, strict=True))
    label = max(probabilities, key=probabilities.__getitem__)
    return Classification(
        label=label,
        probability=probabilities[label],
        probabilities=probabilities,
        model_version=version,
        request_id=request_id,
    )


def _check_length(body: PredictRequest, limits: Limits) -> None:
    errors = [
        InputError(
            pointer=f"#/{name}",
            code="too_long",
            detail=f"has {len(text):,} characters, at most {limits.characters:,} are read",
        )
        for name, text in (("text", body.text), ("pair", body.pair))
        if text is not None and len(text) > limits.characters
    ]
    if errors:
        detail = "; ".join(f"{error.pointer}: {error.detail}" for error in errors)
        raise ProblemError(INVALID_INPUT, detail, errors=errors)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Describe the application: what FastAPI writes, plus problem documents and this server's limits."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        components = schema["components"]["schemas"]
        reference = "#/components/schemas/{model}"
        problem = Problem.model_json_schema(ref_template=reference)
        components.update(problem.pop("$defs"), Problem=problem)
        content = {MEDIA_TYPE: {"schema": {"$ref": reference.format(model="Problem")}}}
        for methods in schema["paths"].values():
            for operation in methods.values():
                for status, response in operation["responses"].items():
                    if int(status) >= 400:
                        response["content"] = content
        properties = components["PredictRequest"]["properties"]
        properties["text"]["maxLength"] = app.state.limits.characters
        properties["pair"]["anyOf"][0]["maxLength"] = app.state.limits.characters
        app.openapi_schema = schema
    return app.openapi_schema
