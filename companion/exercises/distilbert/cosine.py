"""Step ``cosine``: the angle between hidden states."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

from companion.exercises.distilbert.sums import Case, check_gradients, check_values, ragged_mask
from companion.exercises.exercise import Step
from companion.exercises.probing import Probe
from companion.training.distillation import cosine_distance

__all__ = ["COSINE"]

_AXES = {
    "": -1,
    "the cosine runs over the positions instead of the hidden dimensions": 1,
    "the cosine runs over the batch instead of the hidden dimensions": 0,
}
_FORMS = {
    "": lambda cosine: 1 - cosine,
    "it sums the cosine itself, which would push student and teacher apart": lambda cosine: cosine,
    "it sums minus the cosine: right gradients, but each position is 1 too low": lambda cosine: -cosine,
}
_POSITIONS = ("", "padding is counted too", "padding is set to zero but still counted as a position")
_REDUCTIONS = (
    "",
    "it is a mean over the chosen positions instead of a sum",
    "it is a mean over all positions, padding included",
    "it is divided by the number of texts",
)


def _examine(work: Any, probe: Probe) -> str:
    generator = torch.Generator().manual_seed(probe.seed)
    cases = [
        _case("a batch with padding", generator, 4, 9, 12),
        _case("states of other lengths", generator, 3, 7, 20, scale=5.0),
    ]
    answer = check_values(work, probe, cases, cosine_distance, _deviations)
    check_gradients(work, probe, cases[0], cosine_distance, answer)
    return "it equals the package's cosine_distance, and the teacher gets no gradient."


def _case(
    name: str, generator: torch.Generator, rows: int, length: int, width: int, scale: float = 1.0
) -> Case:
    # A shared part, so that the cosines are not all near zero, and lengths that differ, so that they matter.
    common = torch.randn(rows, length, width, generator=generator)
    student, teacher = (
        scale * (common + torch.randn(rows, length, width, generator=generator)) for _ in range(2)
    )
    return Case(name, student, 0.3 * teacher, ragged_mask(rows, length, generator))


def _deviations(case: Case) -> Iterator[tuple[tuple[str, ...], float]]:
    """Compute what each combination of mistakes gives."""
    mask, rows = case.mask, len(case.mask)
    zeroed = [values * mask[..., None] for values in (case.student, case.teacher)]
    for (axis, dim), (form, shape), positions in itertools.product(_AXES.items(), _FORMS.items(), _POSITIONS):
        first, second = zeroed if "zero" in positions else (case.student, case.teacher)
        terms = shape(functional.cosine_similarity(first, second, dim=dim))
        if not positions and dim == -1:
            terms = terms[mask]
        for reduction, by in zip(_REDUCTIONS, (1, int(mask.sum()), mask.numel(), rows), strict=True):
            yield tuple(filter(None, (axis, form, positions, reduction))), (terms.sum() / by).item()
    product = ((case.student * case.teacher).sum(-1))[mask]
    yield (
        ("the states are not divided by their lengths: a product, not a cosine",),
        (1 - product).sum().item(),
    )


COSINE = Step(
    name="cosine",
    title="The direction of hidden states",
    task=(
        "cosine(student_hidden, teacher_hidden, mask): hidden states (batch, seq, hidden), mask bool (batch, "
        "seq). Return the sum of one minus the cosine over the positions that the mask chooses. No gradient "
        "for the teacher."
    ),
    hints=(
        "A loss falls as two things agree. What is the cosine of two vectors that point the same way, and "
        "what should the loss be there? Which positions hold no token at all?",
        "torch.nn.functional.cosine_similarity reduces the axis that it is told. A bool mask as an index "
        "keeps the chosen positions only; multiplying by it keeps the others as zeros, which still count.",
        "(1 - cosine_similarity(student_hidden[mask], teacher_hidden.detach()[mask], dim=-1)).sum()",
    ),
    examine=_examine,
)
