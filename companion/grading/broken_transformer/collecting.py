"""Grades all submissions of a folder, one after the other, and writes a table of marks."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.exercises.broken_transformer import HANDED_IN, Seed
from companion.grading.broken_transformer import Grade, grade, nothing
from companion.grading.sandbox import Sandbox
from companion.grading.tables import cell, write_rows

__all__ = ["Submission", "grade_all", "submissions_in", "write_table"]

COLUMNS = ("name", "total", "repairs", "diagnosis", "tests", "dealt", "says")


@dataclass(frozen=True)
class Submission:
    """What one learner gets.

    Attributes
    ----------
    name : str
        The folder's.
    grade : Grade
    """

    name: str
    grade: Grade

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {"name": self.name, **self.grade.to_dict()}

    def row(self) -> dict[str, str]:
        """Return a row of the table: marks, and in one cell what kept anything from being judged."""
        one = self.grade
        scores = {"repairs": one.repairs.score, "diagnosis": one.diagnosis.score, "tests": one.tests.score}
        marks = {name: getattr(one.weights, name) * score for name, score in scores.items()}
        strangers = tuple(f"not dealt: {title}" for title in one.repairs.strangers)
        said = (*one.errors, *one.repairs.errors, *one.diagnosis.errors, *one.tests.errors, *strangers)
        return {
            "name": cell(self.name),
            "total": f"{one.total:.1f}",
            **{name: f"{value:.1f}" for name, value in marks.items()},
            "dealt": "" if one.dealt is None else str(one.dealt),
            "says": cell(" | ".join((*said, *one.notes))),
        }


def submissions_in(folder: str | Path) -> list[Path]:
    """Return the folders that were handed in, by name: all in a folder but hidden ones and links.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        When it holds no folders, or is a submission itself.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: expected one with a folder for each submission")
    if any((path / name).is_file() for name in (*HANDED_IN, "serve.toml")):
        raise ValueError(f"{path} is a submission itself: give the folder that the submissions lie in")
    found = [one for one in path.iterdir() if one.is_dir() and not one.is_symlink() and one.name[0] != "."]
    if not found:
        raise ValueError(f"there is no folder in {path}: unpack each submission into one of its own")
    return sorted(found)


def grade_all(
    folders: Sequence[Path], *, dealt: Seed | None = None, seed: int | None = None
) -> Iterator[Submission]:
    """Grade folders one after the other, all on the same drawn inputs and bugs.

    Parameters
    ----------
    folders : sequence of Path
        What `submissions_in` found.
    dealt, seed
        As `grade` takes them.

    Yields
    ------
    Submission
        One for each folder, whatever is in it: where grading itself fails, 0 and the reason.
    """
    drawn = secrets.randbits(31) if seed is None else seed
    sandbox = Sandbox()
    try:
        for folder in folders:
            try:
                found = grade(folder, seed=drawn, dealt=dealt, sandbox=sandbox)
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                found = nothing(f"the grading itself failed, look at this one by hand: {what}")
                sandbox.close()
                sandbox = Sandbox()
            yield Submission(folder.name, found)
    finally:
        sandbox.close()


def write_table(path: str | Path, submissions: Sequence[Submission]) -> None:
    """Write a csv file with a row for each submission: all of it, or nothing."""
    write_rows(path, COLUMNS, (one.row() for one in submissions))
