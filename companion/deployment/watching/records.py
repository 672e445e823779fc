"""One line of a prediction log: what was answered, without what was asked."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from companion.deployment.watching.features import TextFeatures

__all__ = ["SCHEMA", "Loss", "NewerSchemaError", "Prediction", "from_line", "loss_line", "prediction_line"]

SCHEMA = 1
"""Version of the lines. A reader refuses lines of a later one: it cannot know what they mean."""

_FEATURES = tuple(field.name for field in fields(TextFeatures))
_OPTIONAL = ("tokens", "tokens_per_word", "unknown_tokens")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer that was given.

    Attributes
    ----------
    time : float
        When, in seconds since 1970.
    request_id : str or None
    model_version : str
        Which model answered.
    labels : tuple of str
        Empty for a regression.
    values : tuple of float
        Probabilities in the order of `labels`, or the score alone.
    features : TextFeatures
    digest : str
        A keyed hash of the text and its pair: equal texts are seen to be equal, as long as the key is.
    share : float
        The share of answers that are logged: each line stands for ``1 / share`` of them.
    text, pair : str, optional
        Only where a log was told to keep them.
    cached : bool
        Whether a cache gave the answer.
    """

    time: float
    request_id: str | None
    model_version: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    features: TextFeatures
    digest: str
    share: float = 1.0
    text: str | None = None
    pair: str | None = None
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """A note in the log that answers before it were not logged.

    Attributes
    ----------
    time : float
        When it was noted.
    count : int
        Answers without a line since the note before.
    """

    time: float
    count: int


class NewerSchemaError(ValueError):
    """A line was written by a later version of this package."""


def prediction_line(prediction: Prediction) -> bytes:
    """Write one line of JSON, its end included; it holds ASCII alone, whatever the labels are called."""
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "time": round(prediction.time, 6),
        "request_id": prediction.request_id,
        "model_version": prediction.model_version,
    }
    if prediction.labels:
        data["probabilities"] = dict(zip(prediction.labels, prediction.values, strict=True))
    else:
        [data["score"]] = prediction.values
    known = {name: value for name, value in asdict(prediction.features).items() if value is not None}
    data["features"] = {
        name: round(value, 6) if isinstance(value, float) else value for name, value in known.items()
    }
    data["hash"] = prediction.digest
    if prediction.share != 1:
        data["share"] = prediction.share
    if prediction.cached:
        data["cached"] = True
    if prediction.text is not None:
        data |= {"text": prediction.text, "pair": prediction.pair}
    return _line(data)


def loss_line(loss: Loss) -> bytes:
    """Write a note of lost answers as one line of JSON, its end included."""
    return _line({"schema": SCHEMA, "time": round(loss.time, 6), "not_logged": loss.count})


def from_line(line: bytes) -> Prediction | Loss:
    """Read one line.

    Parameters
    ----------
    line : bytes

    Returns
    -------
    Prediction or Loss

    Raises
    ------
    json.JSONDecodeError
        When it is not JSON: cut, or not a log at all.
    NewerSchemaError
        When a later version of this package wrote it.
    ValueError
        When it is JSON and not a line of a prediction log.
    """
    try:
        data = json.loads(line)
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError(f"not UTF-8 ({error.reason})", repr(line[:40]), error.start) from None
    if not isinstance(data, dict) or "schema" not in data:
        raise ValueError("it has no schema, expected a line of a prediction log")
    schema = data["schema"]
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise ValueError(f"its schema is {schema!r}, expected a whole number")
    if schema > SCHEMA:
        raise NewerSchemaError(
            f"it has schema {schema}, but this version of companion reads up to {SCHEMA}: "
            "read the log with the version that wrote it, or a later one"
        )
    try:
        if "not_logged" in data:
            return Loss(_number(data["time"]), _count(data["not_logged"]))
        return _prediction(data)
    except (AttributeError, KeyError, TypeError) as error:
        name = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{name}, expected a line of a prediction log") from None


def _prediction(data: dict[str, Any]) -> Prediction:
    if "probabilities" in data:
        labels = tuple(str(label) for label in data["probabilities"])
        values = tuple(_number(value) for value in data["probabilities"].values())
        if not labels:
            raise ValueError("it has no probabilities, expected at least one")
    else:
        labels, values = (), (_number(data["score"]),)
    found = data["features"]
    features: dict[str, Any] = {name: _number(found[name]) for name in _FEATURES if name not in _OPTIONAL}
    features |= {name: _number(found[name]) for name in _OPTIONAL if name in found}
    features |= {name: int(features[name]) for name in ("characters", "tokens") if name in features}
    identity = data["request_id"]
    return Prediction(
        time=_number(data["time"]),
        request_id=None if identity is None else str(identity),
        model_version=str(data["model_version"]),
        labels=labels,
        values=values,
        features=TextFeatures(**features),
        digest=str(data["hash"]),
        share=_number(data.get("share", 1.0)),
        text=data.get("text"),
        pair=data.get("pair"),
        cached=bool(data.get("cached", False)),
    )


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is in it, expected a number")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"not_logged is {value!r}, expected a count of at least 1")
    return value
