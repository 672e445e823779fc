"""What a grading says: marks for three parts, a report to read, and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Diagnosis", "Grade", "Repair", "Repairs", "Tests", "Weights"]


@dataclass(frozen=True)
class Weights:
    """What each part is worth; together 100."""

    repairs: float = 50.0
    diagnosis: float = 20.0
    tests: float = 30.0


@dataclass(frozen=True)
class Repair:
    """One bug.

    Attributes
    ----------
    family, title : str
    repaired : bool
        Whether all behaviours that this bug alone breaks are right.
    wrong : tuple of str
        Those that are not.
    """

    family: str
    title: str
    repaired: bool
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Repairs:
    """The repaired files.

    Attributes
    ----------
    bugs : tuple of Repair
    kept : float
        The share, from 0 to 1, of behaviours that no bug touched and that are still right.
    broken : tuple of str
        Those that are not.
    errors : tuple of str
        What kept a file from being judged.
    """

    bugs: tuple[Repair, ...]
    kept: float
    broken: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """From 0 to 1: the share of bugs that are gone, times the share of the rest that is still right."""
        return self.kept * sum(bug.repaired for bug in self.bugs) / len(self.bugs)


@dataclass(frozen=True)
class Diagnosis:
    """Where the learner says the bugs are.

    Attributes
    ----------
    located, named : tuple of bool
        For each bug: whether an entry points at it, and whether that entry has its family.
    errors : tuple of str
    """

    located: tuple[bool, ...]
    named: tuple[bool, ...]
    errors: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """From 0 to 1: two thirds for the places, one third for the families."""
        return (2 * sum(self.located) + sum(self.named)) / (3 * len(self.located))


@dataclass(frozen=True)
class Tests:
    """The learner's tests.

    Attributes
    ----------
    mutants, variants : int
        Wrong and right programs that they were run on.
    killed, spared : int
        Wrong ones in which a test failed; right ones in which all passed.
    survivors, objected : tuple of str
        The others: what was wrong in those that no test found, what is right in those that one objected to.
    errors : tuple of str
    """

    mutants: int
    variants: int
    killed: int
    spared: int
    survivors: tuple[str, ...] = ()
    objected: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """From 0 to 1: kill rate times specificity."""
        return (
            self.killed / self.mutants * self.spared / self.variants
            if self.mutants and self.variants
            else 0.0
        )


@dataclass(frozen=True)
class Grade:
    """All of it.

    Attributes
    ----------
    repairs, diagnosis, tests
    weights : Weights
    isolation : tuple of str
        What kept the submitted code apart.
    seconds : float
        What grading took.
    """

    repairs: Repairs
    diagnosis: Diagnosis
    tests: Tests
    weights: Weights
    isolation: tuple[str, ...]
    seconds: float

    @property
    def total(self) -> float:
        """Of 100."""
        weights = self.weights
        return (
            weights.repairs * self.repairs.score
            + weights.diagnosis * self.diagnosis.score
            + weights.tests * self.tests.score
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold, the scores included."""
        parts: dict[str, Any] = {"repairs": self.repairs, "diagnosis": self.diagnosis, "tests": self.tests}
        scores = {name: part.score for name, part in parts.items()}
        return {**asdict(self), "scores": scores, "total": self.total}

    def __str__(self) -> str:
        """Write the report."""
        repairs, diagnosis, tests, weights = self.repairs, self.diagnosis, self.tests, self.weights
        lines = [f"{self.total:.1f} of 100"]
        lines.append(f"Repairs: {weights.repairs * repairs.score:.1f} of {weights.repairs:g}")
        for bug in repairs.bugs:
            said = "repaired" if bug.repaired else f"not repaired ({', '.join(bug.wrong)})"
            lines.append(f"  {'✓' if bug.repaired else '✗'} {bug.family}: {said}")
        if repairs.broken:
            lines.append(f"  ✗ right before, wrong now: {', '.join(repairs.broken)}")
        lines.append(f"Diagnosis: {weights.diagnosis * diagnosis.score:.1f} of {weights.diagnosis:g}")
        for bug, located, named in zip(repairs.bugs, diagnosis.located, diagnosis.named, strict=True):
            said = "the place is right" if located else "no entry points at it"
            said += ", the family too" if named else ", its family is not the one given" if located else ""
            lines.append(f"  {'✓' if located and named else '✗'} {bug.title}: {said}")
        lines.append(
            f"Tests: {weights.tests * tests.score:.1f} of {weights.tests:g} "
            f"({tests.killed} of {tests.mutants} bugs found, {tests.spared} of {tests.variants} right "
            "programs "
            "left alone)"
        )
        lines += [f"  ✗ not found: {title}" for title in tests.survivors]
        lines += [f"  ✗ objected to: {title}" for title in tests.objected]
        for error in (*repairs.errors, *diagnosis.errors, *tests.errors):
            lines.append(f"  ! {error}")
        lines.append(f"Kept apart by: {', '.join(self.isolation) or 'nothing'}. Took {self.seconds:.0f} s.")
        return "\n".join(lines)
