"""Answers made up: as columns, and as lines of a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from companion.deployment.answering import Question
from companion.deployment.watching import Columns, Prediction, measure_text
from companion.deployment.watching.records import prediction_line

LABELS = ("negative", "positive")


def _answers(count: int, seed: int, *, burst: int = 1, version: str = "v1") -> Columns:
    """Draw answers of a model; `burst` of them in a row are the same."""
    rng = np.random.default_rng(seed)
    drawn = -(-count // burst)
    words = np.clip(np.round(np.exp(rng.normal(np.log(24), 0.6, drawn))), 4, 120)
    probability = rng.beta(0.5, 0.5, drawn)
    columns = {
        "characters": np.round(words * rng.normal(5.5, 0.4, drawn)),
        "letters_per_word": rng.normal(4.6, 0.4, drawn),
        "non_letters": rng.beta(2, 40, drawn),
        "upper_case": rng.beta(1, 30, drawn),
        "non_ascii": (rng.random(drawn) < 0.05) * rng.beta(1, 20, drawn),
        "tokens_per_word": rng.normal(1.3, 0.1, drawn),
        "unknown_tokens": (rng.random(drawn) < 0.01) * 0.1,
    }
    repeated = {name: np.repeat(values, burst)[:count] for name, values in columns.items()}
    chosen = np.repeat((probability > 0.5).astype(np.int64), burst)[:count]
    scores = np.repeat(np.maximum(probability, 1 - probability), burst)[:count]
    return Columns(version, LABELS, np.arange(count) * 1.0, chosen, scores, repeated)


def _line(
    number: int,
    text: str = "a fine film",
    *,
    values: Sequence[float] = (0.25, 0.75),
    version: str = "v1",
    start: float = 1_700_000_000.0,
) -> bytes:
    """Write a log's line for answer `number`, one a minute."""
    return prediction_line(
        Prediction(
            time=start + 60 * number,
            request_id=f"r{number}",
            model_version=version,
            labels=LABELS,
            values=tuple(values),
            features=measure_text(Question(text)),
            digest="00",
        )
    )


def _lines(count: int, seed: int, *, positive: float = 0.5, long: float = 1.0, **keywords: Any) -> bytes:
    """Write lines of a log; `positive` is the share of that label, `long` stretches the texts."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        sure = float(rng.uniform(0.55, 0.99))
        values = (1 - sure, sure) if rng.random() < positive else (sure, 1 - sure)
        text = " ".join(["word"] * int(rng.integers(4, 40) * long))
        found.append(_line(number, text, values=values, **keywords))
    return b"".join(found)


@pytest.fixture
def answers() -> Callable[..., Columns]:
    return _answers


@pytest.fixture
def lines() -> Callable[..., bytes]:
    return _lines
