"""The matrix of bugs by checks: who finds what, and where they would have it repaired."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from companion.debugging.checks.registry import Check
from companion.debugging.doctor import diagnose
from companion.debugging.finding import Finding
from companion.debugging.ordering import ordered
from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.editing import subject_of

__all__ = ["BugRow", "CheckRow", "by_check", "matrix", "share_detected", "share_placed"]


@dataclass(frozen=True)
class BugRow:
    """What the doctor said of one bug.

    Attributes
    ----------
    bug : str
        Its name.
    component : str
        Where its repair goes.
    findings : tuple of Finding
        Of all checks, in their order.
    """

    bug: str
    component: str
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What was found, the likeliest cause first: in the doctor's order."""
        return ordered(self.findings)[0]

    @property
    def detected(self) -> bool:
        """Whether any check found a problem."""
        return bool(self.problems)

    @property
    def placed(self) -> bool:
        """Whether the likeliest cause is in the right component."""
        return self.detected and self.problems[0].component == self.component

    @property
    def seconds(self) -> float:
        """What all checks cost."""
        return sum(finding.seconds for finding in self.findings)


@dataclass(frozen=True)
class CheckRow:
    """What one check is worth.

    Attributes
    ----------
    check : str
        Its name.
    found : int
        Bugs of which it found something.
    alone : int
        Of those, the bugs of which no other check did.
    seconds : float
        The median over all bugs.
    """

    check: str
    found: int
    alone: int
    seconds: float


def by_check(rows: Sequence[BugRow]) -> list[CheckRow]:
    """Turn the matrix around: a row for each check, in the order in which they ran."""
    said: dict[str, list[Finding]] = {}
    for row in rows:
        for finding in row.findings:
            said.setdefault(finding.check, []).append(finding)
    alone = Counter(
        next(iter(names)) for row in rows if len(names := {found.check for found in row.problems}) == 1
    )
    return [
        CheckRow(
            name,
            sum(finding.is_problem for finding in findings),
            alone[name],
            median(finding.seconds for finding in findings),
        )
        for name, findings in said.items()
    ]


def matrix(bugs: Iterable[Bug], checks: Iterable[Check]) -> list[BugRow]:
    """Run checks on bugs, each in the configuration in which it shows."""
    checks = list(checks)
    found = ((bug, diagnose(subject_of(bug), checks=checks).findings) for bug in bugs)
    return [BugRow(bug.name, bug.component, findings) for bug, findings in found]


def share_detected(rows: Sequence[BugRow]) -> float:
    """Return the share of bugs of which a check found something."""
    return _share([row.detected for row in rows])


def share_placed(rows: Sequence[BugRow]) -> float:
    """Return the share of bugs whose likeliest cause is in the right component."""
    return _share([row.placed for row in rows])


def _share(found: Sequence[bool]) -> float:
    if not found:
        raise ValueError("no rows: run the matrix on at least one bug")
    return sum(found) / len(found)
