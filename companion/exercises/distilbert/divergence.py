"""Step ``kl``: the divergence of the student's softened distribution from the teacher's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from companion.exercises.distilbert.sums import Case, check_gradients, check_values, ragged_mask
from companion.exercises.exercise import Step
from companion.exercises.probing import Probe
from companion.training.distillation import kl_with_temperature

__all__ = ["KL"]

_AXES = {
    "": -1,
    "the softmax runs over the positions instead of the classes": 1,
    "the softmax runs over the batch instead of the classes": 0,
}
_TEMPERATURES = {
    "": (True, True),
    "the logits are not divided by the temperature": (False, False),
    "only the student's logits are divided by the temperature": (True, False),
    "only the teacher's logits are divided by the temperature": (False, True),
}
_ORDERS = {
    "": "right",
    "student and teacher are swapped in the divergence": "swapped",
    "the teacher's entropy is missing, so that it is a cross-entropy and not a divergence": "cross",
    "the student's side is given as probabilities where kl_div wants log-probabilities": "no log",
}
_POSITIONS = {"": True, "padding is counted too": False}
_FACTORS = {
    "": 2,
    "the factor T² is missing": 0,
    "the factor is T instead of T²": 1,
    "it is divided by T² instead of multiplied": -2,
}
_REDUCTIONS = (
    "",
    "it is a mean over the positions instead of a sum",
    "reduction='mean' divides by every element, positions times classes",
    "it is divided by the number of texts (batchmean)",
)


def _examine(work: Any, probe: Probe) -> str:
    generator = torch.Generator().manual_seed(probe.seed)
    cases = [
        _case("a batch with padding", generator, 4, 9, 11),
        _case("another temperature and vocabulary", generator, 3, 6, 23),
        _case("one text, logits further apart", generator, 2, 5, 7, scale=6.0),
    ]
    answer = check_values(work, probe, cases, kl_with_temperature, _deviations)
    check_gradients(work, probe, cases[0], kl_with_temperature, answer)
    return "it equals the package's kl_with_temperature, and the teacher gets no gradient."


def _case(
    name: str, generator: torch.Generator, rows: int, length: int, classes: int, scale: float = 2.0
) -> Case:
    student, teacher = (scale * torch.randn(rows, length, classes, generator=generator) for _ in range(2))
    temperature = 1.5 + 3 * torch.rand((), generator=generator).item()
    return Case(name, student, teacher, ragged_mask(rows, length, generator), (temperature,))


def _deviations(case: Case) -> Iterator[tuple[tuple[str, ...], float]]:
    """Compute what each combination of mistakes gives; none of them gives the right answer."""
    (temperature,), mask = case.rest, case.mask
    for axis, divided, order in itertools.product(_AXES, _TEMPERATURES, _ORDERS):
        own, its = (
            torch.log_softmax(logits / (temperature if yes else 1.0), dim=_AXES[axis])
            for logits, yes in zip((case.student, case.teacher), _TEMPERATURES[divided], strict=True)
        )
        terms = {
            "right": its.exp() * (its - own),
            "swapped": own.exp() * (own - its),
            "cross": -its.exp() * own,
            "no log": its.exp() * (its - own.exp()),
        }[_ORDERS[order]]
        for positions, only in _POSITIONS.items():
            chosen = terms[mask] if only else terms.flatten(0, 1)
            total, counts = chosen.sum().item(), (1, len(chosen), chosen.numel(), len(terms))
            for factor, (reduction, by) in itertools.product(_FACTORS, zip(_REDUCTIONS, counts, strict=True)):
                names = tuple(filter(None, (axis, divided, order, positions, factor, reduction)))
                yield names, total * temperature ** _FACTORS[factor] / by


KL = Step(
    name="kl",
    title="The divergence with a temperature",
    task=(
        "kl(student_logits, teacher_logits, mask, temperature): logits (batch, seq, classes), mask bool "
        "(batch, seq). Return the sum of KL(teacher || student) over the positions that the mask chooses, "
        "both softened by the temperature, times temperature squared. No gradient for the teacher."
    ),
    hints=(
        "Which of the two distributions is the truth that the other is measured against? And what happens to "
        "the size of a gradient when logits are divided by T, once in each of two places?",
        "torch.nn.functional.kl_div takes log-probabilities of the student first, and with log_target=True "
        "those of the teacher second. Choose the positions before you sum, sum everything, then multiply.",
        "kl_div(log_softmax(student_logits[mask] / T, -1), log_softmax(teacher_logits.detach()[mask] / T, -1)"
        ", reduction='sum', log_target=True) * T**2",
    ),
    examine=_examine,
)
