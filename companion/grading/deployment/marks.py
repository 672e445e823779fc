"""What a submitted server gets, and the report of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from companion.exercises.deployment import CHECKS, ServerFinding, ServerInspection

__all__ = ["ServerGrade", "inspection_from"]


@dataclass(frozen=True)
class ServerGrade:
    """All of it.

    Attributes
    ----------
    inspection : ServerInspection
        Empty when nothing could be graded.
    isolation : tuple of str
        What kept the server apart.
    errors : tuple of str
        Why nothing could be graded.
    seconds : float
    """

    inspection: ServerInspection
    isolation: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def total(self) -> float:
        """Of 100."""
        return 0.0 if self.errors else self.inspection.score

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return not self.errors and self.inspection.passed

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "inspection": self.inspection.to_dict(), "total": self.total}

    def marks(self) -> dict[str, float]:
        """Return the marks of each check; none without right answers."""
        good = {one.check for one in self.inspection.findings if one.passed}
        counted = not self.errors and "answers" in good
        return {
            name: float(marks) if counted and name in good else 0.0 for name, (_, marks) in CHECKS.items()
        }

    def __str__(self) -> str:
        """Write the report."""
        lines = [f"{self.total:.1f} of 100", *(f"! {error}" for error in self.errors)]
        if not self.errors:
            lines += [f"  {finding}" for finding in self.inspection.findings]
            lines.append(
                f"Kept apart by: {', '.join(self.isolation) or 'nothing'}. Took {self.seconds:.0f} s."
            )
        return "\n".join(lines)


def inspection_from(told: Mapping[str, Any]) -> ServerInspection:
    """Read what `ServerInspection.to_dict` gave."""
    findings = tuple(ServerFinding(**one) for one in told["findings"])
    return ServerInspection(findings, tuple(told["ratios"]), told["seconds"])
