"""What a grading says: marks for three parts, a report to read, and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.exercises.broken_transformer import Seed

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
    strangers : tuple of str
        Bugs that are in the files and were not dealt: each takes a repair away, so that the files of one deal
        are not taken for the repair of another.
    unread : tuple of str
        The files that were not judged, because they are missing or do not run.
    """

    bugs: tuple[Repair, ...]
    kept: float
    broken: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """From 0 to 1: the share of bugs that are gone, times the share of the rest that is still right."""
        gone = sum(bug.repaired for bug in self.bugs) - len(self.strangers)
        return self.kept * max(0, gone) / max(1, len(self.bugs))


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
        return (2 * sum(self.located) + sum(self.named)) / max(1, 3 * len(self.located))


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
        What was wrong in those that no test found, what is right in those that one objected to.
    errors : tuple of str
    unjudged : tuple of str
        Programs, wrong and right, on which the tests came to no verdict: neither found nor left alone.
    """

    mutants: int
    variants: int
    killed: int
    spared: int
    survivors: tuple[str, ...] = ()
    objected: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()

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
    dealt : int or "default", optional
        The deal that it was graded as; None when that is not known.
    errors : tuple of str
        Why nothing could be graded.
    notes : tuple of str
        What whoever grades should know of the deal.
    """

    repairs: Repairs
    diagnosis: Diagnosis
    tests: Tests
    weights: Weights
    isolation: tuple[str, ...]
    seconds: float
    dealt: Seed | None = None
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        from companion.grading.broken_transformer.report import report

        return report(self)
