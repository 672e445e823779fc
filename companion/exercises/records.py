"""What an exercise gives back: results, hints, progress. Each draws itself, in a notebook or a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from companion.exercises import views

__all__ = ["Evidence", "Hint", "Progress", "Status", "StepResult"]

Status = Literal["passed", "failed", "not done yet"]


@dataclass(frozen=True)
class Evidence:
    """One thing that was compared.

    Attributes
    ----------
    what : str
    expected, found : str
        For people, numbers included.
    passed : bool
    """

    what: str
    expected: str
    found: str
    passed: bool


@dataclass(frozen=True, repr=False)
class StepResult:
    """What a check found.

    Attributes
    ----------
    step, title : str
        Which step was looked at.
    status : {"passed", "failed", "not done yet"}
    says : str
        The finding in one or two sentences; for a mistake that is known, its name.
    tried : tuple of str
        What was run, in order.
    evidence : tuple of Evidence
        What was compared, in order.
    remarks : tuple of str
        What is no mistake but worth knowing.
    printed : str
        The beginning of what the learner's code printed.
    seed : int
        Draws the same inputs again: ``exercise.check(step, work, seed=...)``.
    next_hint : str
        How to go on; empty when passed.
    """

    step: str
    title: str
    status: Status
    says: str
    tried: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    remarks: tuple[str, ...]
    printed: str
    seed: int
    next_hint: str

    @property
    def passed(self) -> bool:
        """Whether the step is done."""
        return self.status == "passed"

    def __bool__(self) -> bool:
        """Tell whether the step is done."""
        return self.passed

    def __str__(self) -> str:
        """Write the result for a terminal."""
        return views.result_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return views.result_html(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self._repr_html_()}


@dataclass(frozen=True, repr=False)
class Hint:
    """One of a step's three hints.

    Attributes
    ----------
    step : str
    number, of : int
        Which one, counted from 1, and how many there are.
    text : str
    """

    step: str
    number: int
    of: int
    text: str

    def __str__(self) -> str:
        """Write the hint for a terminal."""
        return f"Hint {self.number} of {self.of} for {self.step}: {self.text}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return views.hint_html(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self._repr_html_()}


@dataclass(frozen=True, repr=False)
class Progress:
    """How far an exercise is.

    Attributes
    ----------
    exercise : str
    rows : tuple of (str, str, str, int, int)
        For each step: name, title, status, checks so far, hints so far.
    """

    exercise: str
    rows: tuple[tuple[str, str, Status, int, int], ...]

    @property
    def done(self) -> bool:
        """Whether every step was passed."""
        return all(status == "passed" for _, _, status, _, _ in self.rows)

    def __str__(self) -> str:
        """Write the table for a terminal."""
        return views.progress_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return views.progress_html(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self._repr_html_()}
