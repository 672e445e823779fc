"""The addresses that answer: `/predict` for one text, `/predict/batch` for several."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from pydantic import TypeAdapter, ValidationError

from companion.deployment.answering import Answer, Answerer, Question
from companion.deployment.gate import charge
from companion.deployment.notes import notes_of
from companion.deployment.problems import (
    BATCH_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_INPUT,
    ProblemError,
    invalid_input,
    json_pointer,
    problem_document,
)
from companion.deployment.schemas import (
    BatchAnswer,
    BatchItem,
    BatchRequest,
    Classification,
    InputError,
    Limits,
    PredictRequest,
    Regression,
)

__all__ = ["ANSWERING", "answer_all", "check_batch", "check_length", "errors", "router"]

logger = logging.getLogger("companion.deployment")
router = APIRouter()
_PREDICT: TypeAdapter[PredictRequest] = TypeAdapter(PredictRequest)
_OWN_FAULT = frozenset((INVALID_INPUT.code, INTERNAL_ERROR.code))
"""Problems that belong to an item, not to the state of the server."""

ANSWERING = (413, 415, 422, 500, 503, 504)
"""Every status, beside 200 and those of the gate, with which a question may end."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Declare that a route may answer with these problems."""
    return {status: {"description": "A problem document"} for status in statuses}


@router.post("/predict", operation_id="predict", responses=errors(*ANSWERING))
async def predict(body: PredictRequest, request: Request) -> Classification | Regression:
    """Classify one text, or one pair of texts."""
    notes = notes_of(request.scope)
    try:
        check_length(body, request.app.state.limits)
        question = Question(body.text, body.pair)
        answer = await _answerer(request).answer(question, deadline=deadline_of(request))
    except ProblemError as error:
        notes.count(error.problem.code)
        raise
    except Exception:
        notes.count(INTERNAL_ERROR.code)
        raise
    notes.answered(answer)
    return _say(answer, notes.request_id)


@router.post(
    "/predict/batch",
    operation_id="predict_batch",
    responses=errors(*ANSWERING),
    response_model_exclude_none=True,
)
async def predict_batch(body: BatchRequest, request: Request) -> BatchAnswer:
    """Classify several texts, or pairs of texts; each gets its own answer or its own problem.

    The status is 200 as soon as the list as a whole can be read, whatever became of its items. Only when
    not one of them was answered, and all for the same reason that lies with the server (it is loading, it is
    overloaded), is that reason the answer to the whole request, so that a load balancer can see it.
    """
    notes = notes_of(request.scope)
    limits: Limits = request.app.state.limits
    check_batch(len(body.items), 0, limits)
    read = [_read(item, index, limits) for index, item in enumerate(body.items)]
    questions = [item for item in read if isinstance(item, Question)]
    check_batch(len(body.items), sum(len(item.text) + len(item.pair or "") for item in questions), limits)
    await charge(request.scope, len(body.items) - 1)
    said = iter(await answer_all(_answerer(request), questions, request))
    outcomes = [next(said) if isinstance(item, Question) else item for item in read]
    failures = [outcome for outcome in outcomes if isinstance(outcome, ProblemError)]
    for failure in failures:
        notes.count(failure.problem.code)
    kinds = {failure.problem.code for failure in failures}
    if len(failures) == len(outcomes) and len(kinds) == 1 and not kinds & _OWN_FAULT:
        raise failures[0]
    items = [_item(outcome, notes.request_id) for outcome in outcomes]
    return BatchAnswer(items=items, failed=len(failures), request_id=notes.request_id)


async def answer_all(
    answerer: Answerer, questions: Sequence[Question], request: Request
) -> list[Answer | ProblemError]:
    """Ask all questions at once, and take each one's answer or problem. Cancelled together.

    An unforeseen exception is logged, and becomes the `internal-error` of its own question.
    """
    notes, deadline = notes_of(request.scope), deadline_of(request)
    asked = (answerer.answer(question, deadline=deadline) for question in questions)
    outcomes: list[Answer | ProblemError] = []
    for index, outcome in enumerate(await asyncio.gather(*asked, return_exceptions=True)):
        if isinstance(outcome, Answer):
            notes.answered(outcome)
            outcomes.append(outcome)
        elif isinstance(outcome, ProblemError):
            outcomes.append(outcome)
        elif isinstance(outcome, Exception):
            logger.error("request %s failed, text %d", notes.request_id, index, exc_info=outcome)
            detail = "This text could not be answered; the log has the reason."
            outcomes.append(ProblemError(INTERNAL_ERROR, detail))
        else:
            raise outcome
    return outcomes


def check_batch(texts: int, characters: int, limits: Limits) -> None:
    """Refuse a batch that is too large as a whole.

    Raises
    ------
    ProblemError
        413 `batch-too-large`.
    """
    if texts > limits.batch_texts:
        detail = f"The batch has {texts:,} items, at most {limits.batch_texts:,} are read: send it in parts."
        raise ProblemError(BATCH_TOO_LARGE, detail)
    if characters > limits.batch_characters:
        detail = (
            f"The batch has {characters:,} characters, at most {limits.batch_characters:,} are read: "
            "send it in parts."
        )
        raise ProblemError(BATCH_TOO_LARGE, detail)


def check_length(body: PredictRequest, limits: Limits, at: Sequence[str] = ()) -> None:
    """Refuse a text that is too long.

    Raises
    ------
    ProblemError
        422 `invalid-input`.
    """
    errors = [
        InputError(
            pointer=json_pointer([*at, name]),
            code="too_long",
            detail=f"has {len(text):,} characters, at most {limits.characters:,} are read",
        )
        for name, text in (("text", body.text), ("pair", body.pair))
        if text is not None and len(text) > limits.characters
    ]
    if errors:
        detail = "; ".join(f"{error.pointer}: {error.detail}" for error in errors)
        raise ProblemError(INVALID_INPUT, detail, errors=errors)


def deadline_of(request: Request) -> float:
    """Return when nobody waits for the answer any more, as whoever read the headers left it in the state."""
    deadline: float = getattr(request.state, "deadline", math.inf)
    return deadline


def _answerer(request: Request) -> Answerer:
    answerer: Answerer = request.app.state.answerer
    return answerer


def _read(item: object, index: int, limits: Limits) -> Question | ProblemError:
    at = ("items", str(index))
    try:
        body = _PREDICT.validate_python(item)
        check_length(body, limits, at)
    except ValidationError as error:
        found: list[Mapping[str, Any]] = [*error.errors(include_url=False, include_input=False)]
        return invalid_input(found, at)
    except ProblemError as error:
        return error
    return Question(body.text, body.pair)


def _item(outcome: Answer | ProblemError, request_id: str) -> BatchItem:
    if isinstance(outcome, ProblemError):
        return BatchItem(problem=problem_document(outcome, request_id))
    return BatchItem(answer=_say(outcome, request_id))


def _say(answer: Answer, request_id: str) -> Classification | Regression:
    version = answer.model_version
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
