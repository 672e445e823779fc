"""Judges how a server behaves: bad requests, many at once, long company, a model folder that has gone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from companion.exercises.deployment.answers import Served, distance, read_answer
from companion.exercises.deployment.asking import Asker, Reply, ask_together
from companion.exercises.deployment.findings import ServerFinding
from companion.exercises.deployment.material import Requirements
from companion.exercises.deployment.offline import ModelFacts

__all__ = ["BAD_REQUESTS", "judge_company", "judge_concurrency", "judge_errors", "judge_loading"]

TOGETHER = 32
_PATIENCE, _SILENT = 20.0, 2
"""Seconds for a refusal, and how many of them may not come before the rest is spared."""
_LEAKS = (b"Traceback (most recent", b'File "/', b"site-packages", b"\n    at ")

BAD_REQUESTS: dict[str, tuple[str, str, bytes | None]] = {
    "a body that is cut off": ("POST", "/predict", b'{"text": "half'),
    "no text": ("POST", "/predict", b"{}"),
    "a number as text": ("POST", "/predict", b'{"text": 5}'),
    "a list as text": ("POST", "/predict", b'{"text": ["one"]}'),
    "a list as body": ("POST", "/predict", b"[]"),
    "null as body": ("POST", "/predict", b"null"),
    "an empty text": ("POST", "/predict", b'{"text": ""}'),
    "a text of 100,000 characters": ("POST", "/predict", json.dumps({"text": "no " * 33_334}).encode()),
    "another method": ("GET", "/predict", None),
    "another address": ("POST", "/nothing-here", b"{}"),
}
"""What no server can answer: method, path and body of each."""


def judge_errors(
    port: int, text: str, own: Sequence[float], labels: Sequence[str], close: float
) -> ServerFinding:
    """Send what cannot be answered, and then something that can."""
    expected = "a status from 400 to 499, and a body of JSON without a traceback, for each bad request"
    wrong, silent = [], 0
    with contextlib.closing(Asker(port, timeout=_PATIENCE)) as asker:
        for name, (method, path, body) in BAD_REQUESTS.items():
            reply = asker.send(method, path, body)
            silent += not reply.status
            if silent > _SILENT:
                wrong.append("no more were sent, because it does not reply")
                break
            if fault := _fault(reply):
                wrong.append(f"{name}: {fault}")
        after = read_answer(asker.ask(text), labels)
    if isinstance(after, str) or distance(after, own) > close:
        wrong.append("a good request after them is not answered as before")
    if not wrong:
        return ServerFinding("errors", True, expected, f"{len(BAD_REQUESTS)} bad requests refused")
    advice = "Check the body before you use it. A 500 says that the server is broken, and it is not."
    found = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
    return ServerFinding("errors", False, expected, found, advice)


def judge_company(
    port: int, texts: Sequence[str], facts: ModelFacts, wanted: Requirements, *, repeats: int = 3
) -> ServerFinding:
    """Ask short texts alone, and then each at the same moment as many long ones."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    shorts, longs = order[:repeats], order[-(TOGETHER - 1) :]
    expected = "the same probabilities for a text alone and beside long ones, whatever they are"
    moved = 0.0
    for place in shorts:
        with contextlib.closing(Asker(port)) as asker:
            alone = read_answer(asker.ask(texts[place]), facts.labels)
        company = [texts[place], *(texts[long] for long in longs)]
        beside = read_answer(ask_together(port, company)[0], facts.labels)
        if isinstance(alone, str) or isinstance(beside, str):
            said = alone if isinstance(alone, str) else beside
            return ServerFinding(
                "company", False, expected, f"no answer: {said}", "Make `answers` pass first."
            )
        moved = max(moved, distance(alone, beside))
    found = f"the largest difference is {moved:.2g}"
    if moved <= wanted.close / 10:
        return ServerFinding("company", True, expected, found)
    advice = (
        "Texts share a batch, and see each other: give the attention mask, or use a graph whose scales "
        "belong to each row (the standard dynamic INT8 has one scale for the whole batch)."
    )
    return ServerFinding("company", False, expected, found, advice)


def judge_concurrency(
    port: int, texts: Sequence[str], facts: ModelFacts, wanted: Requirements, *, askers: int = TOGETHER
) -> ServerFinding:
    """Ask many texts at the same moment, twice, and see whether each asker gets the own answer."""
    count = min(askers, len(texts))
    expected = f"the own answer for each of {count} askers at once"
    rows = facts.probabilities
    wrong = swapped = 0
    first = ""
    for start in (0, len(texts) - count):
        places = range(start, start + count)
        for place, reply in zip(places, ask_together(port, [texts[one] for one in places]), strict=True):
            row = read_answer(reply, facts.labels)
            if isinstance(row, str) or distance(row, rows[place]) > wanted.close:
                wrong += 1
                first = first or (row if isinstance(row, str) else "other probabilities")
                swapped += not isinstance(row, str) and _is_of_another(row, rows, places, wanted.close)
    if not wrong:
        return ServerFinding("concurrency", True, expected, "all of them, twice")
    found = f"{wrong} of {2 * count} without it, the first: {first}"
    advice = "Keep each request's answer with its request, and keep no state between requests."
    if swapped:
        found += f"; {swapped} got the answer to another text"
    return ServerFinding("concurrency", False, expected, found, advice)


def judge_loading(
    port: int, model: Path, texts: Sequence[str], facts: ModelFacts, close: float
) -> ServerFinding:
    """Take the model's folder away for a moment: what loaded it once does not miss it."""
    expected = "answers while the model's folder is away"
    away = model.with_name(f"{model.name}-away")
    model.rename(away)
    try:
        replies = ask_together(port, texts[:4])
    finally:
        away.rename(model)
    for reply, own in zip(replies, facts.probabilities, strict=False):
        row = read_answer(reply, facts.labels)
        if isinstance(row, str) or distance(row, own) > close:
            advice = "Load tokenizer and model once, when the server starts, before it says that it is ready."
            return ServerFinding(
                "loading", False, expected, row if isinstance(row, str) else "others", advice
            )
    return ServerFinding("loading", True, expected, "it was not missed")


def _fault(reply: Reply) -> str:
    """Say what is wrong with the reply to a bad request; nothing when it is right."""
    if not 400 <= reply.status < 500:
        return reply.says() if reply.status != 200 else "200, as if it were right"
    if any(leak in reply.body for leak in _LEAKS):
        return f"{reply.status} with a traceback"
    if not reply.is_json:
        return f"{reply.status} as {reply.content_type or 'nothing'} instead of JSON"
    try:
        json.loads(reply.body)
    except (ValueError, RecursionError):
        return f"{reply.status} with a body that is not JSON"
    return ""


def _is_of_another(row: Served, rows: Sequence[Sequence[float]], places: Sequence[int], close: float) -> bool:
    return any(distance(row, rows[place]) <= close for place in places)
