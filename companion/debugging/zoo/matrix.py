"""Which check finds which bug."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from companion.debugging import checks as package
from companion.debugging.checks import CHECKS, Check
from companion.debugging.finding import Component, Family, Finding, Status
from companion.debugging.subject import Subject
from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.editing import subject_of

__all__ = ["Cell", "Row", "all_checks", "examined", "matrix", "share_detected", "share_placed"]


@dataclass(frozen=True)
class Cell:
    """What one check said.

    Attributes
    ----------
    check : str
    status : {"ok", "problem", "not applicable"}
    component : str
        Where the check would have it repaired.
    likelihood, seconds : float
        As in `Finding`.
    family : {"data", "model", "training", "dynamics"}
        Of the check.
    """

    check: str
    status: Status
    component: Component
    likelihood: float
    seconds: float
    family: Family = "model"


@dataclass(frozen=True)
class Row:
    """What all checks said of one bug.

    Attributes
    ----------
    bug : str
        Its name.
    component : str
        Where its repair goes.
    cells : tuple of Cell
    """

    bug: str
    component: str
    cells: tuple[Cell, ...]

    @property
    def problems(self) -> tuple[Cell, ...]:
        """What was found, the likeliest cause first."""
        found = [cell for cell in self.cells if cell.status == "problem"]
        return tuple(sorted(found, key=lambda cell: -cell.likelihood))

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
        return sum(cell.seconds for cell in self.cells)


def all_checks() -> dict[str, Check]:
    """Return every check that there is, by name: each module of `companion.debugging.checks` is imported."""
    for module in pkgutil.iter_modules(package.__path__, prefix=f"{package.__name__}."):
        importlib.import_module(module.name)
    return dict(CHECKS)


def examined(subject: Subject, checks: Mapping[str, Check]) -> tuple[Cell, ...]:
    """Run checks on a subject, in their order."""
    return tuple(_cell(check(subject)) for check in checks.values())


def matrix(bugs: Iterable[Bug], checks: Mapping[str, Check]) -> list[Row]:
    """Run checks on bugs, each in the configuration in which it shows."""
    return [Row(bug.name, bug.component, examined(subject_of(bug), checks)) for bug in bugs]


def share_detected(rows: Sequence[Row]) -> float:
    """Return the share of bugs of which a check found something."""
    return _share([row.detected for row in rows])


def share_placed(rows: Sequence[Row]) -> float:
    """Return the share of bugs whose likeliest cause is in the right component."""
    return _share([row.placed for row in rows])


def _share(found: Sequence[bool]) -> float:
    if not found:
        raise ValueError("no rows: run the matrix on at least one bug")
    return sum(found) / len(found)


def _cell(finding: Finding) -> Cell:
    return Cell(
        finding.check,
        finding.status,
        finding.component,
        finding.likelihood,
        round(finding.seconds, 4),
        finding.family,
    )
