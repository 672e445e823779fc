"""Learning rates, batch sizes and what follows from them, recommended for a situation with the reasons.

The rules are published ones; the words after "claim" in a reason name their entry in the ledger of claims,
which records whether they held when measured here.
"""

from __future__ import annotations

from companion.training.recommendations.advice import Recommendation, recommend
from companion.training.recommendations.rates import BRACKETS, Bracket, Kind, RateRange, learning_rate_range
from companion.training.recommendations.scaling import (
    ScaledRate,
    lamb_rate,
    linear_scaling,
    square_root_scaling,
)
from companion.training.recommendations.table import SITUATIONS, Row, Situation, table

__all__ = [
    "BRACKETS",
    "SITUATIONS",
    "Bracket",
    "Kind",
    "RateRange",
    "Recommendation",
    "Row",
    "ScaledRate",
    "Situation",
    "lamb_rate",
    "learning_rate_range",
    "linear_scaling",
    "recommend",
    "square_root_scaling",
    "table",
]
