"""Recommendations side by side, for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from companion.training.recommendations.advice import Recommendation, recommend
from companion.training.recommendations.rates import Kind

__all__ = ["SITUATIONS", "Row", "Situation", "table"]


@dataclass(frozen=True)
class Situation:
    """A run to recommend settings for: a name for the reader, and arguments of :func:`recommend`."""

    name: str
    kind: Kind
    parameters: int
    examples: int
    mean_tokens: float
    devices: int = 1
    per_device_limit: int | None = None


@dataclass(frozen=True)
class Row:
    """A situation and what is recommended for it."""

    situation: Situation
    recommendation: Recommendation


SITUATIONS = (
    Situation("small encoder, small data", "encoder", 22_700_000, 4_000, 40),
    Situation("small encoder", "encoder", 22_700_000, 67_000, 13),
    Situation("BERT-base, small data", "encoder", 110_000_000, 4_000, 40),
    Situation("BERT-base", "encoder", 110_000_000, 67_000, 13),
    Situation("BERT-base, 8 devices", "encoder", 110_000_000, 390_000, 40, devices=8),
    Situation("GPT-2", "decoder", 124_000_000, 20_000, 512, per_device_limit=8),
    Situation("7B decoder, 8 devices", "decoder", 7_000_000_000, 50_000, 1024, devices=8, per_device_limit=4),
    Situation(
        "BERT-base from nothing", "pretraining", 110_000_000, 30_000_000, 128, devices=8, per_device_limit=64
    ),
)


def table(situations: Sequence[Situation] = SITUATIONS) -> tuple[Row, ...]:
    """Recommend settings for several situations.

    Parameters
    ----------
    situations : sequence of Situation
        By default those that the chapter compares.

    Returns
    -------
    tuple of Row

    Raises
    ------
    ValueError
        As :func:`recommend` does.
    """
    return tuple(
        Row(
            situation,
            recommend(
                situation.kind,
                parameters=situation.parameters,
                examples=situation.examples,
                mean_tokens=situation.mean_tokens,
                devices=situation.devices,
                per_device_limit=situation.per_device_limit,
            ),
        )
        for situation in situations
    )
