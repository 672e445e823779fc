"""What is sent, and what an answer means: an answer, a refusal, or a failure.

429 and 503 are refusals: the server says that it has no room, which is what it should say when it has none.
Anything else that is not an answer is a failure, whatever its status: 200 with half a JSON document, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

__all__ = ["REFUSALS", "Endpoint", "Outcome", "Reading", "bodies", "path_of", "read_answer", "retry_after"]

Endpoint = Literal["predict", "batch", "kserve"]
Outcome = Literal["ok", "refused", "failed"]

REFUSALS = frozenset({429, 503})
"""Statuses that say that there is no room now."""
_LONGEST = 120  # characters of a title


@dataclass(frozen=True)
class Reading:
    """What became of a request.

    Attributes
    ----------
    outcome : {"ok", "refused", "failed"}
    title : str
        What was wrong; empty for an answer.
    """

    outcome: Outcome
    title: str = ""


def path_of(endpoint: Endpoint, model_name: str = "companion") -> str:
    """Return the path that an endpoint is found under.

    Parameters
    ----------
    endpoint : {"predict", "batch", "kserve"}
    model_name : str
        For KServe's protocol.

    Returns
    -------
    str
    """
    paths = {"predict": "/predict", "batch": "/predict/batch", "kserve": f"/v2/models/{model_name}/infer"}
    return paths[endpoint]


def bodies(
    endpoint: Endpoint, texts: Sequence[str], pairs: Sequence[str] | None = None, *, per_request: int = 1
) -> list[str]:
    """Write the texts as bodies of requests.

    Parameters
    ----------
    endpoint : {"predict", "batch", "kserve"}
    texts : sequence of str
        At least one.
    pairs : sequence of str, optional
        The second text of each.
    per_request : int
        Texts in one body; 1 for ``"predict"``. The last body is filled up with the first texts.

    Returns
    -------
    list of str
        JSON, ASCII alone.
    """
    count = len(texts)
    items = [
        {"text": text} if pairs is None else {"text": text, "pair": pairs[at]}
        for at, text in enumerate(texts)
    ]
    if endpoint == "predict":
        return [json.dumps(item) for item in items]
    starts = range(0, count, per_request)
    groups = [[items[(start + place) % count] for place in range(per_request)] for start in starts]
    if endpoint == "batch":
        return [json.dumps({"items": group}) for group in groups]
    names = ("text",) if pairs is None else ("text", "pair")
    return [
        json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": [per_request],
                        "datatype": "BYTES",
                        "data": [item[name] for item in group],
                    }
                    for name in names
                ]
            }
        )
        for group in groups
    ]


def read_answer(endpoint: Endpoint, status: int, body: bytes) -> Reading:
    """Say what an answer means.

    Parameters
    ----------
    endpoint : {"predict", "batch", "kserve"}
    status : int
    body : bytes

    Returns
    -------
    Reading
        A batch of which some items were refused and none failed is a refusal; one with an item that failed
        is a failure.
    """
    if not 200 <= status < 300:
        outcome: Outcome = "refused" if status in REFUSALS else "failed"
        return Reading(outcome, _title(body))
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return Reading("failed", "the body is not JSON")
    if endpoint == "predict":
        answered = isinstance(document, dict) and bool(document)
        return Reading("ok") if answered else Reading("failed", "the body is no JSON object")
    key = "items" if endpoint == "batch" else "outputs"
    found = document.get(key) if isinstance(document, dict) else None
    if not (isinstance(found, list) and found):
        return Reading("failed", f"the body has no list of {key}")
    return _read_items(found) if endpoint == "batch" else Reading("ok")


def _read_items(items: list[Any]) -> Reading:
    problems = [
        item["problem"] for item in items if isinstance(item, dict) and isinstance(item.get("problem"), dict)
    ]
    for problem in problems:
        if problem.get("status") not in REFUSALS:
            return Reading("failed", f"an item of the batch: {_cut(problem.get('title'))}")
    return Reading("refused", f"an item of the batch: {_cut(problems[0].get('title'))}") if problems else _OK


_OK = Reading("ok")


def _title(body: bytes) -> str:
    """Take the title of a problem document; other servers say it under other names, or in plain text."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return _cut(body[: 4 * _LONGEST].decode("utf-8", "replace"))
    if isinstance(document, dict):
        for name in ("title", "detail", "error", "message"):
            if isinstance(document.get(name), str):
                return _cut(document[name])
    return _cut(json.dumps(document))


def _cut(text: object) -> str:
    line = " ".join(str(text).split()) or "no word of why"
    line = "".join(sign if sign.isprintable() else "?" for sign in line)
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Read the header Retry-After: seconds, or a date (RFC 9110, section 10.2.3).

    Parameters
    ----------
    value : str or None
    now : datetime, optional
        What a date is counted from.

    Returns
    -------
    float or None
        Seconds, not below 0; None where nothing usable was said.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
