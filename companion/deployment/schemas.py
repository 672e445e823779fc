"""What goes over the wire: pydantic models of the requests, the answers and the problems."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Parameters
    ----------
    characters : int
        Longest `text` and longest `pair`, in characters (code points).
    body_bytes : int
        Largest body, in bytes. One character takes up to twelve bytes of escaped JSON, so the default
        leaves room for two texts of the default length, and for a batch of the default size.
    batch_texts : int
        Most items in one batch.
    batch_characters : int
        Most characters in one batch, over all texts and pairs.

    Raises
    ------
    ValueError
        If a limit is not positive.
    """

    characters: int = 20_000
    body_bytes: int = 1 << 20
    batch_texts: int = 64
    batch_characters: int = 80_000

    def __post_init__(self) -> None:
        """Refuse a limit that lets nothing through."""
        for field in fields(self):
            if getattr(self, field.name) < 1:
                value = getattr(self, field.name)
                raise ValueError(f"Limits: {field.name} is {value}, expected at least 1.")


def _readable(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must contain more than white space")
    if "\0" in text:
        raise PydanticCustomError("nul_character", "must not contain a NUL character")
    return text


Text = Annotated[
    str,
    # For clients that check before they ask: the same as `_readable`.
    Field(min_length=1, json_schema_extra={"pattern": r"^[^\x00]*[^\s\x00][^\x00]*$"}),
    AfterValidator(_readable),
]


class PredictRequest(BaseModel):
    """One text, or one pair of texts, to classify."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"text": "Not a bad film, for once."}}
    )

    text: Text = Field(description="The text; the first one of a pair.")
    pair: Text | None = Field(default=None, description="The second text, for a model that reads pairs.")


class BatchRequest(BaseModel):
    """Several texts, or pairs of texts, to classify."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"items": [{"text": "Not bad."}, {"text": "Not good."}]}},
    )

    items: list[Any] = Field(
        min_length=1,
        description="What /predict would take, several times. An item that is something else is not refused "
        "with the others: its place in the answer holds its problem.",
        json_schema_extra={"items": {"anyOf": [{"$ref": "#/components/schemas/PredictRequest"}, {}]}},
    )


class Classification(BaseModel):
    """The answer of a classifier."""

    model_config = ConfigDict(protected_namespaces=())

    label: str = Field(description="The most probable label.")
    probability: float = Field(ge=0, le=1, description="Its probability.")
    probabilities: dict[str, float] = Field(description="The probability of every label.")
    model_version: str = Field(description="Which model answered.")
    request_id: str = Field(description="The same as in the header X-Request-ID.")


class Regression(BaseModel):
    """The answer of a model that gives a number, such as a similarity."""

    model_config = ConfigDict(protected_namespaces=())

    score: float = Field(description="The number.")
    model_version: str = Field(description="Which model answered.")
    request_id: str = Field(description="The same as in the header X-Request-ID.")


class Live(BaseModel):
    """The process runs and its event loop answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """The model is loaded and has answered once."""

    model_config = ConfigDict(protected_namespaces=())

    status: Literal["ready"] = "ready"
    model_version: str = Field(description="Which model answers.")


class InputError(BaseModel):
    """One thing that is wrong in the body."""

    pointer: str = Field(description="Where: a JSON Pointer into the body, as a URI fragment.")
    code: str = Field(description="What, for programs.")
    detail: str = Field(description="What, for people.")


class Problem(BaseModel):
    """An error, as RFC 9457 describes it, with the extension members of this server."""

    type: str = Field(description="The kind of problem, as a stable URN.")
    title: str = Field(description="The kind of problem, for people. It does not vary.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="This occurrence of it, for people.")
    code: str = Field(description="The kind of problem, for programs: the last part of `type`.")
    request_id: str = Field(description="The same as in the header X-Request-ID: find it in the log.")
    retry_after_ms: int | None = Field(default=None, description="When to try again, if that can help.")
    errors: list[InputError] | None = Field(default=None, description="What is wrong, field by field.")
    error: str | None = Field(default=None, description="The same as `detail`; under /v2 only.")


class BatchItem(BaseModel):
    """What became of one item: an answer or a problem, never both."""

    answer: Classification | Regression | None = Field(default=None, description="What /predict would say.")
    problem: Problem | None = Field(default=None, description="Why there is no answer to this item.")


class BatchAnswer(BaseModel):
    """What became of every item, in the order of the request."""

    items: list[BatchItem] = Field(description="One for each item of the request.")
    failed: int = Field(ge=0, description="How many of them hold a problem.")
    request_id: str = Field(description="The same as in the header X-Request-ID.")
