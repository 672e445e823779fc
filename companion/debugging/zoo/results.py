"""The measurements of `benchmarks/debugging.py`, read again: by the book, and by the benchmark itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from companion.debugging.finding import Finding
from companion.debugging.zoo import BUGS
from companion.debugging.zoo.bug import Bug
from companion.debugging.zoo.matrix import BugRow
from companion.debugging.zoo.measure import Judged

__all__ = ["Results", "read_results", "restored", "stored"]

_KEPT = ("check", "status", "summary", "component", "where", "family", "likelihood")


@dataclass(frozen=True)
class Results:
    """What was measured of the zoo.

    Attributes
    ----------
    stored : dict
        By the name of a bug, or by the configuration of the right code, as the benchmark wrote it.
    """

    stored: dict[str, dict[str, Any]]

    @cached_property
    def bugs(self) -> tuple[Bug, ...]:
        """The bugs that were measured and that the zoo still has."""
        return tuple(bug for bug in BUGS if bug.name in self.stored)

    @cached_property
    def rows(self) -> tuple[BugRow, ...]:
        """What the doctor said of each bug; components are the zoo's own, which may have been put right."""
        return tuple(
            BugRow(bug.name, bug.component, tuple(map(restored, self.stored[bug.name]["findings"])))
            for bug in self.bugs
        )

    @cached_property
    def losses(self) -> dict[str, tuple[Judged, Judged]]:
        """The run with each bug, and one of the right code in its place."""
        return {
            bug.name: (
                Judged(**self.stored[bug.name]["run"]),
                Judged(**self.stored[self.stored[bug.name]["clean"]]["runs"][0]),
            )
            for bug in self.bugs
        }

    def found_by(self, baseline: str) -> tuple[str, ...]:
        """Return the names of the bugs that ``"taught"`` (two famous checks) or ``"curve"`` alone finds."""
        return tuple(bug.name for bug in self.bugs if self.stored[bug.name][baseline])

    @property
    def dates(self) -> tuple[str, str]:
        """The first and the last day."""
        days = sorted(row["date"][:10] for row in self.stored.values())
        return days[0], days[-1]

    @property
    def machines(self) -> tuple[str, ...]:
        """The processors it was measured on."""
        return tuple(sorted({str(row["machine"].get("cpu", "unknown")) for row in self.stored.values()}))


def read_results(path: Path) -> Results:
    """Read what `benchmarks/debugging.py` wrote.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    """
    return Results(json.loads(path.read_text(encoding="utf-8"))["rows"])


def stored(finding: Finding) -> Any:
    """Return what is kept of a finding: of a problem all that the order rests on."""
    seconds = round(finding.seconds, 3)
    if not finding.is_problem:
        return [finding.check, finding.status, seconds]
    return {name: getattr(finding, name) for name in _KEPT} | {"seconds": seconds}


def restored(kept: Any) -> Finding:
    """Return a finding as it was, but for what `stored` left out."""
    if isinstance(kept, dict):
        return Finding(**kept)
    check, status, seconds = kept
    return Finding(check, status, "", "layers", seconds=seconds)
