"""Judges answers: are they the model's, are they right, are they probabilities, was it the small model."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from companion.exercises.deployment.asking import Reply
from companion.exercises.deployment.findings import ServerFinding
from companion.exercises.deployment.material import Requirements
from companion.exercises.deployment.offline import ModelFacts

__all__ = ["Served", "distance", "judge_answers", "judge_int8", "likeness", "read_answer"]

Served = tuple[float, ...]
"""Probabilities in the order of the model's labels."""

_SHOWS, _LIKE = 2e-6, 0.15
"""A difference far above the last digit of 32 bits shows; an answer is the graph's when it is off by less
than this share of what its twin in 32 bits is off by."""
_FORM = 'status 200 and {"label": ..., "probabilities": {label: number, ...}}'


def read_answer(reply: Reply, labels: Sequence[str]) -> Served | str:
    """Return the numbers of an answer, or say what is wrong with its form."""
    if reply.status != 200:
        return reply.says()
    try:
        said = json.loads(reply.body)
    except (ValueError, RecursionError):
        return f"a body that is not JSON: {reply.says()}"
    if not isinstance(said, dict):
        return f"a {type(said).__name__} instead of an object"
    numbers = said.get("probabilities")
    if not isinstance(numbers, dict):
        return f"an answer with {_few(said)}, and no object probabilities"
    if set(numbers) != set(labels):
        return f"probabilities for {_few(numbers)} instead of {', '.join(labels)}"
    values = [numbers[label] for label in labels]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return f"probabilities that are no numbers: {str(values)[:80]}"
    if said.get("label") not in labels:
        return f"the label {str(said.get('label'))[:40]!r} instead of one of {', '.join(labels)}"
    if values[labels.index(said["label"])] < max(values):
        return f"the label {said['label']!r}, which has not the highest probability"
    return tuple(map(float, values))


def distance(one: Served, other: Sequence[float]) -> float:
    """Return the largest difference between two rows of numbers."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def likeness(replies: Sequence[Reply], facts: ModelFacts) -> float | None:
    """Say how far answers to the telling texts are from the graph's, as a share of how far its twin's are.

    Returns
    -------
    float or None
        The middle of the texts: near 0 for the graph itself, about 1 for the same model in 32 bits. None
        where the twin's answers hardly differ on any text, so that nobody can tell.
    """
    shares = []
    for reply, own, floats in zip(replies, facts.telling_own, facts.telling_floats, strict=False):
        row, gap = read_answer(reply, facts.labels), distance(own, floats)
        if gap >= _SHOWS:
            shares.append(math.inf if isinstance(row, str) else distance(row, own) / gap)
    return statistics.median(shares) if shares else None


def judge_answers(
    replies: Sequence[Reply],
    facts: ModelFacts,
    truth: Sequence[int],
    wanted: Requirements,
    *,
    telling: Sequence[Reply] = (),
) -> list[ServerFinding]:
    """Judge the answers to labelled texts; `facts` holds the model's own to the same texts first.

    Parameters
    ----------
    replies : sequence of Reply
    facts : ModelFacts
    truth : sequence of int
        The labels.
    wanted : Requirements
    telling : sequence of Reply
        The answers to ``facts.telling``, which have to be the model's as well.

    Returns
    -------
    list of ServerFinding
        ``answers``, ``accuracy``, ``probabilities``.
    """
    read = [read_answer(reply, facts.labels) for reply in replies]
    more = [read_answer(reply, facts.labels) for reply in telling]
    ill = [one for one in (*read, *more) if isinstance(one, str)]
    if ill:
        return _ill_formed(ill, len(read) + len(more))
    rows = [one for one in read if not isinstance(one, str)]
    own = (*facts.probabilities[: len(rows)], *facts.telling_own[: len(more)])
    said = [*rows, *(one for one in more if not isinstance(one, str))]
    apart = [distance(row, one) for row, one in zip(said, own, strict=True)]
    wrong = sum(one > wanted.close for one in apart)
    return [
        ServerFinding(
            "answers",
            wrong == 0,
            f"each probability within {wanted.close:g} of what the handed-in model says alone",
            f"{len(said) - wrong} of {len(said)} are the model's, the largest difference is {max(apart):.2g}",
            "" if wrong == 0 else _why_other(apart, said, own),
        ),
        _accuracy(rows, truth, wanted),
        _probabilities(rows, truth, wanted),
    ]


def judge_int8(
    facts: ModelFacts, answered: bool, wanted: Requirements, *, alike: float | None = None
) -> ServerFinding:
    """Judge whether what answers is a graph that computes in whole numbers.

    Parameters
    ----------
    facts : ModelFacts
    answered : bool
        Whether the server's answers are those of this graph, as far as `judge_answers` asks.
    wanted : Requirements
    alike : float, optional
        The `likeness` of its answers. Default: it cannot be told.
    """
    expected = (
        f"at least {wanted.integer_share:.0%} of the weights in integer products, a file of at most "
        f"{wanted.size:.0%} of its numbers in 32 bits, and answers that are this graph's"
    )
    found = (
        f"{facts.integer_products} integer and {facts.float_products} other products ran, "
        f"{facts.integer_share:.0%} of the weights in the former, a file of {facts.size:.0%}"
    )
    if facts.integer_share < wanted.integer_share or facts.size > wanted.size:
        advice = 'Export with precision="int8". Formats that store few bits and compute in 32 do not count.'
        return ServerFinding("int8", False, expected, found, advice)
    if alike is not None:
        found += f", answers off by {alike:.2g} of what 32 bits are off by"
    if not answered or (alike is not None and alike > _LIKE):
        advice = "The folder is in eight bits, but the answers come from something else: serve this folder."
        return ServerFinding("int8", False, expected, f"{found}, and answers of another model", advice)
    if alike is None and facts.telling:
        found += "; the same weights in 32 bits would answer alike, so the digits prove nothing"
    return ServerFinding("int8", True, expected, found)


def _ill_formed(ill: Sequence[str], count: int) -> list[ServerFinding]:
    said = f"{len(ill)} of {count} replies are no answer, such as {ill[0]}"
    advice = "The label, and the softmax of the logits: one number for each label, and all of them."
    nothing = "nothing to judge, because not all replies are answers"
    return [
        ServerFinding("answers", False, _FORM, said, advice),
        ServerFinding("accuracy", False, "answers to all texts", nothing, "Make `answers` pass first."),
        ServerFinding("probabilities", False, _FORM, said, advice),
    ]


def _accuracy(rows: Sequence[Served], truth: Sequence[int], wanted: Requirements) -> ServerFinding:
    right = sum(row.index(max(row)) == label for row, label in zip(rows, truth, strict=True)) / len(rows)
    return ServerFinding(
        "accuracy",
        right >= wanted.accuracy,
        f"at least {wanted.accuracy:.0%} right",
        f"{right:.0%} of {len(rows)} texts that were written for this",
        ""
        if right >= wanted.accuracy
        else "Train longer, or look whether labels are swapped: evaluate the folder with companion evaluate.",
    )


def _probabilities(rows: Sequence[Served], truth: Sequence[int], wanted: Requirements) -> ServerFinding:
    expected = f"numbers from 0 to 1, a sum of 1, and a mean confidence within {wanted.calibration:g} of the "
    expected += "share that is right"
    outside = [row for row in rows if min(row) < -1e-6 or max(row) > 1 + 1e-6 or abs(sum(row) - 1) > 1e-3]
    if outside:
        shown = ", ".join(f"{value:.3g}" for value in outside[0])
        found = f"{len(outside)} of {len(rows)} answers are no probabilities, such as {shown}"
        return ServerFinding(
            "probabilities", False, expected, found, "Logits are no confidence: apply the softmax."
        )
    right = sum(row.index(max(row)) == label for row, label in zip(rows, truth, strict=True)) / len(rows)
    mean = sum(map(max, rows)) / len(rows)
    good = abs(mean - right) <= wanted.calibration
    found = f"a mean confidence of {mean:.2f} where {right:.2f} are right"
    advice = "" if good else "The model is too sure or not sure enough: calibrate it, or train it less long."
    return ServerFinding("probabilities", good, expected, found, advice)


def _why_other(apart: Sequence[float], rows: Sequence[Served], own: Sequence[Sequence[float]]) -> str:
    """Guess what differs, from how far and how often."""
    same = sum(row.index(max(row)) == one.index(max(one)) for row, one in zip(rows, own, strict=True))
    if len(set(rows)) <= max(2, len(rows) // 10):
        return "Hardly any two answers differ: they do not depend on the text."
    if same < 0.9 * len(rows):
        return (
            "Other labels too: another model, padding that is not masked, or none at all. Run the handed-in "
            "folder, and give it the attention mask."
        )
    if max(apart) < 1e-3:
        return (
            "Close, but rounded, or cut at another length, or of another precision: give all digits, cut at "
            "max_length tokens, and serve the handed-in folder."
        )
    return (
        "The labels agree and the digits do not: another precision of the same model answers (its FP32 "
        "version?), or padding is not masked, or batches share one scale."
    )


def _few(names: Mapping[Any, Any]) -> str:
    """Name the first fields of an object."""
    return ", ".join(str(name)[:20] for name in list(names)[:4]) or "no fields"
