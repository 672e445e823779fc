"""What a check returns: a status, and evidence that someone else can look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["COMPONENTS", "Component", "Family", "Finding", "Status"]

Status = Literal["ok", "problem", "not applicable"]
Family = Literal["data", "model", "training", "dynamics"]
Component = Literal[
    "attention",
    "positions",
    "normalisation",
    "feed-forward",
    "embeddings and head",
    "dropout",
    "layers",
    "loss",
    "optimizer",
    "schedule",
    "training step",
    "labels",
    "splits",
    "tokenization",
    "batching",
    "evaluation",
]

COMPONENTS: Mapping[Component, str] = MappingProxyType(
    {
        "attention": "projections, scores, heads, the masks of the future and of padding",
        "positions": "position table, sinusoids, rotations, position ids",
        "normalisation": "layer norms: axis, place, dtype",
        "feed-forward": "the two linear maps and what bends between them",
        "embeddings and head": "word table, output scores, their tying",
        "dropout": "where it is, and when",
        "layers": "residual sums, how blocks are registered, copied and initialised",
        "loss": "targets and their shift, what is averaged over what, what is left out",
        "optimizer": "which parameters it has, weight decay, learning rate",
        "schedule": "how the learning rate moves",
        "training step": "zero_grad, backward, clip, step: order, accumulation",
        "labels": "wrong, swapped, conflicting or unbalanced labels",
        "splits": "the same text on both sides",
        "tokenization": "vocabulary, unknown words, truncation, preprocessing",
        "batching": "padding, attention mask, order, sampling, workers",
        "evaluation": "mode, metric, averages over batches",
    }
)
"""Where a repair goes, and what belongs there."""


@dataclass(frozen=True)
class Finding:
    """What a check has to say about a subject.

    There is nothing between "ok" and "problem": a problem is something to repair, and ends the command line
    tool with 1. What is worth knowing and is not wrong is told in the summary of an "ok".

    Attributes
    ----------
    check : str
        The check's name.
    status : {"ok", "problem", "not applicable"}
        The last one wherever the check could not have told right from wrong.
    summary : str
        One sentence: what was found against what was expected. Of a check that does not apply: why not.
    evidence : mapping of str to float
        The numbers that the status rests on, with their names.
    component : str
        Where the repair goes: one of `COMPONENTS`.
    where : str
        The module, parameter, function or rows, as exactly as the check can tell.
    why : str
        What it costs to leave it as it is.
    fix : str
        What to change.
    family : {"data", "model", "training", "dynamics"}
    likelihood : float
        From 0 to 1: how likely this, when it is a problem, is the cause and not a consequence of another.
    seconds : float
        What the check cost.
    """

    check: str
    status: Status
    summary: str
    component: Component
    evidence: Mapping[str, float] = field(default_factory=dict)
    where: str = ""
    why: str = ""
    fix: str = ""
    family: Family = "model"
    likelihood: float = 0.5
    seconds: float = 0.0

    @property
    def is_problem(self) -> bool:
        """Whether something is wrong."""
        return self.status == "problem"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: a number that is not finite becomes a string."""
        evidence = {
            name: value if math.isfinite(value) else str(value) for name, value in self.evidence.items()
        }
        return {**asdict(self), "evidence": evidence}
