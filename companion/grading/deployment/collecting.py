"""Grades the submitted servers of a folder, one after the other: two at once would slow each other."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.grading.deployment import ServerGrade, grade, nothing
from companion.grading.tables import cell

__all__ = ["ServerMarks", "grade_all"]


@dataclass(frozen=True)
class ServerMarks:
    """What one learner gets.

    Attributes
    ----------
    name : str
        The folder's.
    grade : ServerGrade
    """

    name: str
    grade: ServerGrade

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"name": self.name, **self.grade.to_dict()}

    def row(self) -> dict[str, str]:
        """Return a row of the table: marks, and in one cell what did not pass and why."""
        one = self.grade
        failed = [str(finding) for finding in one.inspection.findings if not finding.passed]
        marks = {name: f"{value:.1f}" for name, value in one.marks().items()}
        said = cell(" | ".join((*one.errors, *failed)))
        return {"name": cell(self.name), "total": f"{one.total:.1f}", **marks, "says": said}


def grade_all(folders: Sequence[Path], *, seed: int | None = None) -> Iterator[ServerMarks]:
    """Grade folders one after the other, all with the same drawn texts.

    Parameters
    ----------
    folders : sequence of Path
    seed : int, optional
        Draws the texts. Default: new ones.

    Yields
    ------
    ServerMarks
        One for each folder, whatever is in it: where grading itself fails, 0 and the reason.
    """
    drawn = secrets.randbits(31) if seed is None else seed
    for folder in folders:
        try:
            found = grade(folder, seed=drawn)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            found = nothing(f"the grading itself failed, look at this one by hand: {what}")
        yield ServerMarks(folder.name, found)
