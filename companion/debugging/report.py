"""What the doctor hands out: findings in order, as an object, text, HTML and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from companion.debugging.finding import COMPONENTS, Finding

__all__ = ["SCHEMA", "Diagnosis"]

SCHEMA = 1
"""Version of what `Diagnosis.to_dict` returns."""
_WIDTH = 100


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What the checks found, the likeliest cause first.

    Attributes
    ----------
    findings : tuple of Finding
        All of them, in the order in which the checks ran.
    problems : tuple of Finding
        What is wrong, ordered by how likely it is the cause; what says the same is there once.
    follows : mapping of str to str
        Names of checks whose problem may be a mere consequence, each with the check that explains it.
    seconds : float
        What the diagnosis took.
    """

    findings: tuple[Finding, ...]
    problems: tuple[Finding, ...]
    seconds: float
    follows: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Finding | None:
        """The problem to repair first, or None when nothing is wrong."""
        return self.problems[0] if self.problems else None

    @property
    def ok(self) -> bool:
        """Whether no check found anything wrong."""
        return not self.problems

    @property
    def groups(self) -> dict[str, tuple[Finding, ...]]:
        """The problems by component: those of one component are often one fault seen from several sides."""
        groups: dict[str, list[Finding]] = {}
        for problem in self.problems:
            groups.setdefault(problem.component, []).append(problem)
        return {component: tuple(problems) for component, problems in groups.items()}

    def passed(self) -> tuple[Finding, ...]:
        """Return the findings of the checks that found what they expected."""
        return tuple(finding for finding in self.findings if finding.status == "ok")

    def not_applicable(self) -> dict[str, tuple[str, ...]]:
        """Return the reasons why checks did not apply, each with the names of these checks."""
        reasons: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.status == "not applicable":
                reasons.setdefault(finding.summary, []).append(finding.check)
        return {reason: tuple(names) for reason, names in reasons.items()}

    def verdict(self) -> str:
        """Say in one sentence what came of it."""
        ran = sum(finding.status != "not applicable" for finding in self.findings)
        skipped = len(self.findings) - ran
        counted = f"{_count(ran, 'check')} ran in {self.seconds:.1f} s, {skipped} did not apply."
        if self.ok:
            return f"No problem found: {counted}" if ran else f"Nothing could be checked: {counted}"
        return f"{_count(len(self.problems), 'problem')} found: {counted}"

    def text(self) -> str:
        """Write the report for a terminal: the likely cause in full, then the rest in one line each."""
        lines = [self.verdict()]
        if self.first is not None:
            lines += ["", f"Repair first: {self.first.check} [{self.first.component}]"]
            for name, value in _details(self.first):
                lines += _wrapped(f"{name:9} {value}", hanging=12)
            together = [item.check for item in self.groups[self.first.component][1:]]
            if together:
                lines += _wrapped(f"{'also seen':9} by {', '.join(together)}", hanging=12)
        if rest := self.problems[1:]:
            lines += ["", "Then look again, at these if they are still there:"]
            for component, problems in self.groups.items():
                for problem in problems:
                    if problem in rest:
                        lines += _wrapped(f"- {problem.check} [{component}]: {self._in_one_line(problem)}")
        if reasons := self.not_applicable():
            lines += ["", "Did not apply:"]
            for reason, names in reasons.items():
                lines += _wrapped(f"- {reason}: {', '.join(names)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold.

        Returns
        -------
        dict
            ``schema``: `SCHEMA`. ``ok``: whether nothing is wrong. ``verdict``: one sentence. ``seconds``.
            ``first``: name of the check whose problem to repair first, or None. ``problems``: findings as in
            `Finding.to_dict`, the likeliest cause first. ``follows``: which problem may follow from which.
            ``findings``: those of all checks, in the order in which they ran.
        """
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "verdict": self.verdict(),
            "seconds": self.seconds,
            "first": None if self.first is None else self.first.check,
            "problems": [finding.to_dict() for finding in self.problems],
            "follows": dict(self.follows),
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        """Write the report as text."""
        return self.text()

    def __repr__(self) -> str:
        """Write the report as text."""
        return self.text()

    def _repr_html_(self) -> str:
        # No colours of our own: the site's boxes and a notebook's tables follow light and dark by themselves.
        box = "claim-holds" if self.ok else "claim-does-not-hold"
        parts = [f'<p class="claim-verdict">{escape(self.verdict())}</p>']
        if self.first is not None:
            title = f"Repair first: {self.first.check} ({self.first.component})"
            rows = [(name, escape(value)) for name, value in _details(self.first)]
            parts += [f'<p class="claim-says">{escape(title)}</p>', _html_table(rows)]
        if self.problems[1:]:
            rows = [
                (problem.check, f"{escape(problem.component)}: {escape(self._in_one_line(problem))}")
                for problem in self.problems[1:]
            ]
            parts.append(_folded(f"Then look again: {_count(len(rows), 'problem')} more", rows))
        if passed := self.passed():
            rows = [(finding.check, escape(finding.summary)) for finding in passed]
            parts.append(_folded(f"Passed: {_count(len(rows), 'check')}", rows))
        if reasons := self.not_applicable():
            rows = [(", ".join(names), escape(reason)) for reason, names in reasons.items()]
            count = sum(len(names) for names in reasons.values())
            parts.append(_folded(f"Did not apply: {_count(count, 'check')}", rows))
        label = escape("Diagnosis: " + ("no problem found" if self.ok else "problems found"), quote=True)
        return f'<div class="claim-box {box}" role="note" aria-label="{label}">{"".join(parts)}</div>'

    def _in_one_line(self, problem: Finding) -> str:
        cause = self.follows.get(problem.check)
        where = f" ({problem.where})" if problem.where else ""
        return f"{problem.summary}{where}" + (f"; may follow from: {cause}" if cause else "")


def _details(finding: Finding) -> list[tuple[str, str]]:
    """Return the parts of a finding that have something to say, with their names."""
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding.evidence.items())
    parts = [
        ("found", finding.summary),
        ("where", finding.where or COMPONENTS[finding.component]),
        ("evidence", numbers),
        ("why", finding.why),
        ("fix", finding.fix),
    ]
    return [(name, text) for name, text in parts if text]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wrapped(line: str, hanging: int = 2) -> list[str]:
    return textwrap.wrap(
        line,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * (2 + hanging if hanging == 2 else hanging),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _html_table(rows: Sequence[tuple[str, str]]) -> str:
    """Draw rows of (name, HTML)."""
    return f"<table><tbody>{''.join(_html_rows(rows))}</tbody></table>"


def _html_rows(rows: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, cell in rows:
        yield (
            f'<tr><th scope="row" style="text-align:left">{escape(name)}</th>'
            f'<td style="text-align:left">{cell}</td></tr>'
        )


def _folded(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return f"<details><summary>{escape(title)}</summary>{_html_table(rows)}</details>"
