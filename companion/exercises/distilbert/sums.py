"""What the checks of the two sums over positions share: cases, the comparison, the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from companion.exercises.probing import Failed, Probe
from companion.exercises.values import best_match, close, number, plain, shown

__all__ = ["Case", "check_gradients", "check_values", "ragged_mask"]

Loss = Callable[..., torch.Tensor]
Deviations = Callable[["Case"], Iterator[tuple[tuple[str, ...], float]]]


@dataclass(frozen=True)
class Case:
    """One set of arguments: two tensors, a mask, and what comes after it.

    Attributes
    ----------
    name : str
    student, teacher : Tensor
        float32 (batch, seq, width).
    mask : Tensor
        bool (batch, seq).
    rest : tuple of float
        Further arguments.
    """

    name: str
    student: torch.Tensor
    teacher: torch.Tensor
    mask: torch.Tensor
    rest: tuple[float, ...] = ()

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Everything, in the order of the signature."""
        return (self.student, self.teacher, self.mask, *self.rest)


def ragged_mask(rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Mark the real tokens of texts of different length, padded on the right: bool (rows, length)."""
    lengths = torch.randint(1, length, (rows,), generator=generator)
    lengths[0] = length
    return torch.arange(length) < lengths[:, None]


def check_values(
    work: Any, probe: Probe, cases: Sequence[Case], reference: Loss, deviations: Deviations
) -> Any:
    """Compare a learner's sums with the package's; name the mistake when they differ.

    Returns
    -------
    object
        What the function returned for the first case.
    """
    answers, found, expected = [], [], []
    for case in cases:
        watched = {
            "the student's tensor": case.student,
            "the teacher's tensor": case.teacher,
            "the mask": case.mask,
        }
        answers.append(probe.call(work, *case.arguments, what=case.name, watched=watched))
        found.append(number(answers[-1]))
        expected.append(reference(*case.arguments).item())
    right = True
    for case, got, wanted in zip(cases, found, expected, strict=True):
        right &= probe.show(case.name, shown(wanted), shown(got), close(got, wanted))
    if not right:
        raise Failed(_explain(cases, found, expected, deviations))
    again = number(probe.call(work, *cases[0].arguments, what="the first inputs again"))
    probe.require(
        close(again, found[0]),
        "the first inputs again",
        shown(found[0]),
        shown(again),
        "the same inputs gave another answer the second time: the function keeps something between calls.",
    )
    return answers[0]


def check_gradients(work: Any, probe: Probe, case: Case, reference: Loss, answer: Any) -> None:
    """See that the student's gradient is the package's and that the teacher's is none."""
    if plain(answer) is None:
        probe.remarks.append(
            "It returns a plain number. The number is right, but nothing can be trained with it: a loss has "
            "to be a tensor that still knows how it was computed."
        )
        return
    student, teacher = (t.clone().requires_grad_() for t in (case.student, case.teacher))
    what = "gradients"
    loss = plain(probe.call(work, student, teacher, case.mask, *case.rest, what=what))
    if loss is None or not loss.requires_grad:
        probe.remarks.append(
            "The result has no gradient, so nothing can be trained with it: look for .item(), .detach() or "
            "torch.no_grad() around the student's side."
        )
        return
    # Not by the learner's own backward: a subclass could have one.
    own, its = probe.call(
        lambda: torch.autograd.grad(loss.sum(), (student, teacher), allow_unused=True), what=what
    )
    flows = 0.0 if its is None else its.abs().max().item()
    probe.require(
        flows == 0.0,
        "gradient into the teacher, largest",
        "0",
        shown(flows),
        "a gradient flows into the teacher, who would learn from the student: detach the teacher's tensor.",
    )
    again = case.student.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(reference(again, case.teacher, case.mask, *case.rest), again)
    away = (
        float("inf")
        if own is None
        else ((own - wanted).abs().max() / wanted.abs().max().clamp_min(1e-9)).item()
    )
    probe.require(
        away < 1e-3,
        "gradient into the student, largest difference as a share",
        "below 0.001",
        shown(away),
        "the value is right but the student's gradient is not: part of its side is detached.",
    )


def _explain(
    cases: Sequence[Case], found: Sequence[float], expected: Sequence[float], deviations: Deviations
) -> str:
    columns: dict[tuple[str, ...], list[float]] = {}
    for case in cases:
        for names, value in deviations(case):
            columns.setdefault(names, []).append(value)
    if names := best_match(found, columns.items()):
        return f"in every case the number is what comes out when {' and '.join(names)}."
    ratios = [got / wanted for got, wanted in zip(found, expected, strict=True)]
    if max(ratios) - min(ratios) < 1e-3 * abs(ratios[0]):
        return f"every number is {shown(ratios[0])} times what it should be: a factor is wrong."
    return "the numbers differ from the right ones, and not by a mistake that this check knows."
