"""What an inspection found, check by check, and what each is worth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CHECKS", "ServerFinding", "ServerInspection"]

CHECKS: dict[str, tuple[str, int]] = {
    "ready": ("starts, and says when it is ready", 5),
    "answers": ("answers as the handed-in model does", 20),
    "accuracy": ("is right on texts that nobody has seen", 10),
    "probabilities": ("says probabilities, and means them", 5),
    "company": ("gives a text one answer, whatever is asked beside it", 10),
    "int8": ("computes in whole numbers of eight bits", 15),
    "errors": ("refuses bad requests, and says so in JSON", 10),
    "concurrency": ("gives each asker the own answer", 5),
    "loading": ("loads the model once", 5),
    "throughput": ("is faster than the naive server", 10),
    "drain": ("answers what it accepted before it stops", 5),
}
"""Each check's title and marks, 100 together, in the order in which they are made."""


@dataclass(frozen=True)
class ServerFinding:
    """What one check found.

    Attributes
    ----------
    check : str
        One of `CHECKS`.
    passed : bool
    expected, found : str
    advice : str
        What to do; empty when passed.
    """

    check: str
    passed: bool
    expected: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        """Write it for a terminal."""
        title = CHECKS[self.check][0]
        if self.passed:
            return f"✓ {self.check}: {title} ({self.found})"
        return f"✗ {self.check}: found {self.found}; expected {self.expected}. {self.advice}".rstrip()


@dataclass(frozen=True)
class ServerInspection:
    """What all checks found.

    Attributes
    ----------
    findings : tuple of ServerFinding
        In the order of `CHECKS`.
    ratios : tuple of float
        Throughput over the naive server's, round by round; empty where it was not measured.
    seconds : float
    """

    findings: tuple[ServerFinding, ...]
    ratios: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    @property
    def score(self) -> float:
        """Of 100. Wrong answers are worth nothing, however well they are served."""
        good = {finding.check for finding in self.findings if finding.passed}
        return float(sum(CHECKS[name][1] for name in good)) if "answers" in good else 0.0

    def of(self, check: str) -> ServerFinding:
        """Return what one check found.

        Raises
        ------
        KeyError
            When it was not made.
        """
        return {finding.check: finding for finding in self.findings}[check]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {**asdict(self), "passed": self.passed, "score": self.score}

    def __str__(self) -> str:
        """Write all findings for a terminal."""
        return "\n".join(map(str, self.findings))
