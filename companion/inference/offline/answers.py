"""A window's answers as lines of JSON, and what a row gets that has none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from companion.data import BadRow, Example
from companion.inference.offline.job import OnError
from companion.inference.offline.windows import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from companion.inference.predictor import Predictor

__all__ = ["WindowAnswers", "answer_window"]


@dataclass(frozen=True)
class WindowAnswers:
    """One line for each row of a window.

    Attributes
    ----------
    lines : bytes
        UTF-8, each line with its end.
    rows, problems : int
        Lines in all, and those that say why there is no answer.
    """

    lines: bytes
    rows: int
    problems: int


def answer_window(
    predictor: Predictor, window: Window, *, batch_size: int, on_error: OnError
) -> WindowAnswers:
    """Answer the rows of a window.

    Parameters
    ----------
    predictor : Predictor
        Sorts the texts by length before it cuts them into batches.
    window : Window
    batch_size : int
    on_error : {"stop", "record"}
        With ``record``, a window that fails as a whole is answered text by text, so that one fails alone.

    Returns
    -------
    WindowAnswers

    Raises
    ------
    ValueError
        For the first row without an answer, unless it is to be recorded.
    """
    good = [item for item in window.items if not isinstance(item, BadRow)]
    answers: dict[int, str | BadRow] = {item.row: item for item in window.items if isinstance(item, BadRow)}
    if good:
        answers |= _answers(predictor, good, window, batch_size, on_error)
    lines = [_line(answers[item.row if isinstance(item, BadRow) else item[0]]) for item in window.items]
    problems = [answer for answer in answers.values() if isinstance(answer, BadRow)]
    if problems and on_error == "stop":
        first = min(problems, key=lambda problem: problem.row)
        raise ValueError(f"{window.source}, row {first.row}: {first.problem}")
    return WindowAnswers("".join(lines).encode(), len(lines), len(problems))


def _answers(
    predictor: Predictor,
    good: Sequence[tuple[int, Example]],
    window: Window,
    batch_size: int,
    on_error: OnError,
) -> dict[int, str | BadRow]:
    rows = [row for row, _ in good]
    try:
        values = _values(predictor, [example for _, example in good], window.paired, batch_size)
        if len(values) != len(rows):
            raise ValueError(f"{len(values)} answers came back for {len(rows)} texts")
    except Exception as error:  # whatever a model or a tokenizer throws
        if len(rows) == 1:
            return {rows[0]: BadRow(rows[0], _said(error))}
        if on_error == "stop":
            where = f"{window.source}, rows {rows[0]} to {rows[-1]}"
            raise ValueError(f"{where}: {_said(error)}") from error
        alone = (_answers(predictor, [item], window, batch_size, on_error) for item in good)
        return {row: answer for found in alone for row, answer in found.items()}
    return {row: _answer(predictor, row, each) for row, each in zip(rows, values, strict=True)}


def _values(
    predictor: Predictor, examples: Sequence[Example], paired: bool, batch_size: int
) -> NDArray[np.float32]:
    texts = [example.text for example in examples]
    pairs = [example.pair or "" for example in examples] if paired else None
    compute = predictor.logits if predictor.is_regression else predictor.probabilities
    return compute(texts, pairs, batch_size=batch_size)


def _answer(predictor: Predictor, row: int, values: NDArray[np.float32]) -> str | BadRow:
    if not np.isfinite(values).all():
        return BadRow(row, f"the model gave {[float(value) for value in values]}; expected finite numbers")
    if predictor.is_regression:
        return json.dumps({"score": float(values[0])})
    probabilities = {label: float(value) for label, value in zip(predictor.labels, values, strict=True)}
    answer: dict[str, Any] = {
        "label": predictor.labels[int(values.argmax())],
        "probabilities": probabilities,
    }
    return json.dumps(answer, ensure_ascii=False)


def _line(answer: str | BadRow) -> str:
    if isinstance(answer, BadRow):
        answer = json.dumps({"problem": answer.problem, "row": answer.row}, ensure_ascii=True)
    return answer + "\n"


def _said(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"the model failed with {type(error).__name__}{': ' if words else ''}{words[:300]}"
