"""What makes a function a check."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from companion.debugging.checks.blame import fault_of_the_check
from companion.debugging.finding import Component, Family, Finding
from companion.debugging.subject import Subject

__all__ = ["Check", "NotApplicable", "Report", "check"]


class NotApplicable(Exception):
    """Raised by a check that could not tell right from wrong here; its message says why."""


Report = Callable[[Subject], Finding]


@dataclass(frozen=True)
class Check:
    """A check: call it with a subject.

    Attributes
    ----------
    name : str
    family : {"data", "model", "training", "dynamics"}
    component : str
        Where a repair goes, unless the finding knows better.
    question : str
        What it asks: the first line of the function's docstring.
    needs : tuple of str
        What a subject must have: names of `Subject`'s attributes.
    slow : bool
        Whether it trains: it takes longer than a tenth of a second for a small model.
    likelihood : float
        See `Finding.likelihood`.
    function : callable
    """

    name: str
    family: Family
    component: Component
    question: str
    needs: tuple[str, ...]
    slow: bool
    likelihood: float
    function: Report

    def __call__(self, subject: Subject) -> Finding:
        """Look at a subject. A check never raises.

        An error in the subject's own code is a problem of the subject. One in the check's own is none: the
        check then does not apply, and says where it failed.
        """
        start = time.perf_counter()
        missing = [name for name in self.needs if not getattr(subject, name)]
        if missing:
            finding = self.not_applicable(f"it needs {', '.join(missing)}")
        else:
            try:
                finding = self.function(subject)
            except NotApplicable as reason:
                finding = self.not_applicable(str(reason))
            except Exception as error:  # of the subject's own code, which runs in here, or of the check's
                finding = self.crashed(error)
        return replace(finding, family=self.family, seconds=time.perf_counter() - start)

    def not_applicable(self, reason: str) -> Finding:
        """Return the finding of a check that cannot say anything."""
        return Finding(self.name, "not applicable", reason, self.component)

    def ok(self, summary: str, evidence: dict[str, float] | None = None) -> Finding:
        """Return the finding of a check that found what it expected."""
        return Finding(self.name, "ok", summary, self.component, evidence or {})

    def problem(
        self,
        summary: str,
        evidence: dict[str, float],
        *,
        why: str,
        fix: str,
        where: str = "",
        component: Component | None = None,
        likelihood: float | None = None,
    ) -> Finding:
        """Return the finding of a check that found something wrong."""
        return Finding(
            self.name,
            "problem",
            summary,
            component or self.component,
            evidence,
            where=where,
            why=why,
            fix=fix,
            likelihood=self.likelihood if likelihood is None else likelihood,
        )

    def crashed(self, error: Exception) -> Finding:
        """Return the finding for an error that was raised while a subject was looked at."""
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if place := fault_of_the_check(error, getattr(self.function, "__code__", None)):
            return self.not_applicable(f"the check itself failed in {place}, with {said}")
        return self.problem(
            f"it raised {said}",
            {},
            why="What raises an error here can raise it in training or, worse, in production.",
            fix="Read the message: the shapes and names in it are the ones that your code was called with.",
            likelihood=0.4,
        )


CHECKS: dict[str, Check] = {}
"""All checks by name, in the order in which their modules define them."""


def check(
    *,
    family: Family,
    component: Component,
    needs: tuple[str, ...] = (),
    slow: bool = False,
    likelihood: float = 0.5,
) -> Callable[[Report], Check]:
    """Make a function a check, named after it, and add it to `CHECKS`.

    Inside the function, the check itself goes by the function's name: ``return causality.ok(...)``.
    """

    def register(function: Report) -> Check:
        question = (function.__doc__ or "").strip().splitlines()[0]
        name = function.__name__.replace("_", " ")
        if name in CHECKS and CHECKS[name].function.__module__ != function.__module__:
            raise ValueError(
                f"there are two checks {name!r}, in {CHECKS[name].function.__module__} and in "
                f"{function.__module__}: rename one"
            )
        CHECKS[name] = Check(name, family, component, question, needs, slow, likelihood, function)
        return CHECKS[name]

    return register
