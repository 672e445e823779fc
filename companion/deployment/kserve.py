"""KServe's Open Inference Protocol, version 2, over HTTP with JSON: a thin adapter onto the same answers.

A model has one or two inputs, `text` and `pair`, both ``BYTES`` of shape ``[n]`` or ``[n, 1]``. A classifier
gives `probabilities` (``FP32``, shape ``[n, labels]``) and `label` (``BYTES``, ``[n]``), any other model
`score` (``FP32``, ``[n]``). The protocol has no place for the problem of a single text: one that cannot be
answered fails its request. Not there: the binary extension, and the names of versions in addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, WithJsonSchema

from companion.deployment.answering import Answer, Question
from companion.deployment.gate import charge
from companion.deployment.predicting import ANSWERING, answer_all, check_batch, errors
from companion.deployment.problems import INVALID_INPUT, MODEL_NOT_FOUND, ProblemError, json_pointer
from companion.deployment.schemas import InputError, Limits, Text
from companion.deployment.service import ServedModel

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "ModelMetadata",
    "OutputTensor",
    "TensorMetadata",
    "router",
]

router = APIRouter(prefix="/v2")
ModelName = Annotated[str, Path(max_length=64, description="The name that this server gives its model.")]


class KserveLive(BaseModel):
    """The process runs and its event loop answers."""

    live: Literal[True] = True


class KserveReady(BaseModel):
    """The model answers."""

    ready: Literal[True] = True


class ModelReady(BaseModel):
    """The model of this name answers."""

    name: str
    ready: Literal[True] = True


class TensorMetadata(BaseModel):
    """Name, type and shape of an input or an output; -1 is a length that varies."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]


class ModelMetadata(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def _flat(data: object) -> object:
    """Take the texts out of lists of one; leave anything else to be refused."""
    if isinstance(data, list) and all(isinstance(item, list) and len(item) == 1 for item in data):
        return [item[0] for item in data]
    return data


_TEXT = TypeAdapter(Text).json_schema()
_FLAT_OR_NESTED: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "minItems": 1, "items": _TEXT},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "minItems": 1, "maxItems": 1, "items": _TEXT},
        },
    ]
}


class InferInput(BaseModel):
    """Texts, or the second texts of pairs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["text", "pair"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1, max_length=2, description="[n] or [n, 1], for n texts."
    )
    datatype: Literal["BYTES"]
    parameters: dict[str, Any] | None = Field(default=None, description="Not used.")
    data: Annotated[list[Text], BeforeValidator(_flat), WithJsonSchema(_FLAT_OR_NESTED)] = Field(
        min_length=1, description="Flat, or one list for each text."
    )


class InferOutput(BaseModel):
    """An output that is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Literal["probabilities", "label", "score"]
    parameters: dict[str, Any] | None = Field(default=None, description="Not used.")


class InferRequest(BaseModel):
    """Texts, or pairs of texts, to classify."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Not bad."]}],
                "outputs": [{"name": "label"}],
            }
        },
    )

    id: str | None = Field(default=None, max_length=128, description="Given back as it came.")
    parameters: dict[str, Any] | None = Field(default=None, description="Not used.")
    inputs: list[InferInput] = Field(min_length=1, max_length=2)
    outputs: list[InferOutput] | None = Field(default=None, max_length=3, description="By default all.")


class OutputTensor(BaseModel):
    """One output, flat, row by row."""

    name: str
    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    data: list[float] | list[str]


class InferResponse(BaseModel):
    """What the model said."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


@router.get("/health/live", operation_id="kserve_live", responses=errors(500))
async def kserve_live() -> KserveLive:
    """Say that the process runs."""
    return KserveLive()


@router.get("/health/ready", operation_id="kserve_ready", responses=errors(500, 503))
async def kserve_ready(request: Request) -> KserveReady:
    """Say whether the model answers."""
    request.app.state.service.check_ready()
    return KserveReady()


@router.get("/models/{name}", operation_id="kserve_model", responses=errors(404, 422, 500, 503))
async def kserve_model(name: ModelName, request: Request) -> ModelMetadata:
    """Describe the model: its inputs, its outputs, its version."""
    _check_name(name, request)
    model = _model(request)
    texts = [TensorMetadata(name=word, datatype="BYTES", shape=[-1]) for word in ("text", "pair")]
    if model.is_regression:
        outputs = [TensorMetadata(name="score", datatype="FP32", shape=[-1])]
    else:
        outputs = [
            TensorMetadata(name="probabilities", datatype="FP32", shape=[-1, len(model.labels)]),
            TensorMetadata(name="label", datatype="BYTES", shape=[-1]),
        ]
    version = model.manifest.model_version
    return ModelMetadata(
        name=name, versions=[version], platform="onnxruntime_onnx", inputs=texts, outputs=outputs
    )


@router.get("/models/{name}/ready", operation_id="kserve_model_ready", responses=errors(404, 422, 500, 503))
async def kserve_model_ready(name: ModelName, request: Request) -> ModelReady:
    """Say whether the model of this name answers."""
    _check_name(name, request)
    request.app.state.service.check_ready()
    return ModelReady(name=name)


@router.post(
    "/models/{name}/infer",
    operation_id="kserve_infer",
    responses=errors(404, *ANSWERING),
    response_model_exclude_none=True,
)
async def kserve_infer(name: ModelName, body: InferRequest, request: Request) -> InferResponse:
    """Classify several texts, or pairs of texts; all of them or none."""
    _check_name(name, request)
    limits: Limits = request.app.state.limits
    questions = _questions(body, limits)
    wanted = [output.name for output in body.outputs or ()]
    is_regression = _model(request).is_regression
    _check_outputs(wanted, is_regression)
    await charge(request.scope, len(questions) - 1)
    answers = []
    for outcome in await answer_all(request.app.state.answerer, questions, request):
        if isinstance(outcome, ProblemError):
            raise outcome
        answers.append(outcome)
    outputs = [_OUTPUTS[output](answers) for output in wanted or _outputs(is_regression)]
    return InferResponse(model_name=name, model_version=answers[0].model_version, id=body.id, outputs=outputs)


def _model(request: Request) -> ServedModel:
    model: ServedModel = request.app.state.service.model
    return model


def _check_name(name: str, request: Request) -> None:
    if name != request.app.state.model_name:
        raise ProblemError(
            MODEL_NOT_FOUND, f"This server's model is called {request.app.state.model_name!r}."
        )


def _questions(body: InferRequest, limits: Limits) -> list[Question]:
    """Put texts and pairs together; refuse what does not fit together, and what is too much."""
    given: dict[str, list[str]] = {}
    for index, tensor in enumerate(body.inputs):
        at = ["inputs", str(index)]
        count = len(tensor.data)
        if tensor.name in given:
            raise _invalid([*at, "name"], "twice", f"'{tensor.name}' is given twice")
        if tensor.shape not in ([count], [count, 1]):
            says = f"has {count} texts of data, expected the shape [{count}] or [{count}, 1]"
            raise _invalid([*at, "shape"], "shape_mismatch", says)
        for place, text in enumerate(tensor.data):
            if len(text) > limits.characters:
                says = f"has {len(text):,} characters, at most {limits.characters:,} are read"
                raise _invalid([*at, "data", str(place)], "too_long", says)
        given[tensor.name] = tensor.data
    if "text" not in given:
        raise _invalid(["inputs"], "missing", "has no input named 'text'")
    texts = given["text"]
    pairs: list[str] | list[None] = given.get("pair", [None] * len(texts))
    if len(pairs) != len(texts):
        raise _invalid(["inputs"], "shape_mismatch", f"has {len(texts)} texts and {len(pairs)} pairs")
    check_batch(len(texts), sum(map(len, texts)) + sum(len(pair or "") for pair in pairs), limits)
    return [Question(text, pair) for text, pair in zip(texts, pairs, strict=True)]


def _check_outputs(wanted: Sequence[str], is_regression: bool) -> None:
    there = _outputs(is_regression)
    for index, name in enumerate(wanted):
        if name not in there:
            says = f"this model gives {' and '.join(there)}, not {name}"
            raise _invalid(["outputs", str(index), "name"], "no_such_output", says)


def _outputs(is_regression: bool) -> tuple[str, ...]:
    return ("score",) if is_regression else ("probabilities", "label")


def _invalid(path: list[str], code: str, detail: str) -> ProblemError:
    error = InputError(pointer=json_pointer(path), code=code, detail=detail)
    return ProblemError(INVALID_INPUT, f"{error.pointer}: {detail}", errors=[error])


def _probabilities(answers: list[Answer]) -> OutputTensor:
    flat = [value for answer in answers for value in answer.values]
    shape = [len(answers), len(answers[0].values)]
    return OutputTensor(name="probabilities", datatype="FP32", shape=shape, data=flat)


def _labels(answers: list[Answer]) -> OutputTensor:
    best = [answer.labels[answer.values.index(max(answer.values))] for answer in answers]
    return OutputTensor(name="label", datatype="BYTES", shape=[len(answers)], data=best)


def _scores(answers: list[Answer]) -> OutputTensor:
    flat = [answer.values[0] for answer in answers]
    return OutputTensor(name="score", datatype="FP32", shape=[len(answers)], data=flat)


_OUTPUTS: dict[str, Callable[[list[Answer]], OutputTensor]] = {
    "probabilities": _probabilities,
    "label": _labels,
    "score": _scores,
}
