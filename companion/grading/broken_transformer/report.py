"""Writes a grading for people: what kept a file from being judged first, then what the marks are for."""

from __future__ import annotations

from collections.abc import Iterator

from companion.exercises.broken_transformer.behaviours import BEHAVIOURS
from companion.grading.broken_transformer.marks import Grade, Repair, Repairs, Tests

__all__ = ["report"]

_FILES = {"architecture": "model.py", "training": "train.py", "data": "train.py"}


def report(grade: Grade) -> str:
    """Return the report, in lines."""
    repairs, diagnosis, tests, weights = grade.repairs, grade.diagnosis, grade.tests, grade.weights
    errors = (*grade.errors, *repairs.errors, *diagnosis.errors, *tests.errors)
    lines = [f"{grade.total:.1f} of 100", *(f"! {error}" for error in errors)]
    lines += [f"! {note}" for note in grade.notes]
    if grade.errors:
        return "\n".join(lines)
    lines.append(f"Repairs: {weights.repairs * repairs.score:.1f} of {weights.repairs:g}")
    lines += _of_repairs(repairs)
    lines.append(f"Diagnosis: {weights.diagnosis * diagnosis.score:.1f} of {weights.diagnosis:g}")
    for bug, located, named in zip(repairs.bugs, diagnosis.located, diagnosis.named, strict=True):
        said = "the place is right" if located else "no entry points at it"
        said += ", the family too" if named else ", its family is not the one given" if located else ""
        lines.append(f"  {'✓' if located and named else '✗'} {bug.title}: {said}")
    lines.append(
        f"Tests: {weights.tests * tests.score:.1f} of {weights.tests:g} ({tests.killed} of {tests.mutants} "
        f"bugs found, {tests.spared} of {tests.variants} right programs left alone)"
    )
    lines += _of_tests(tests)
    lines.append(f"Kept apart by: {', '.join(grade.isolation) or 'nothing'}. Took {grade.seconds:.0f} s.")
    return "\n".join(lines)


def _of_repairs(repairs: Repairs) -> Iterator[str]:
    """Give a line for each bug, and for what else is wrong; of a file that does not run, no behaviours."""
    for bug in repairs.bugs:
        yield f"  {'✓' if bug.repaired else '✗'} {bug.family}: {_said(bug, repairs.unread)}"
    broken = [name for name in repairs.broken if BEHAVIOURS[name].file not in repairs.unread]
    if broken:
        yield f"  ✗ right before, wrong now: {', '.join(broken)}"
    for title in repairs.strangers:
        yield (
            f"  ✗ in the files, and not dealt: {title}. It takes a repair away: "
            "was this folder dealt with another seed?"
        )


def _said(bug: Repair, unread: tuple[str, ...]) -> str:
    if bug.repaired:
        return "repaired"
    file = _FILES[bug.family]
    return f"not judged: {file} was not run" if file in unread else f"not repaired ({', '.join(bug.wrong)})"


def _of_tests(tests: Tests) -> Iterator[str]:
    """Give a line for each program that a test was wrong about, and one for those without a verdict."""
    yield from (f"  ✗ not found: {title}" for title in tests.survivors)
    yield from (f"  ✗ objected to: {title}" for title in tests.objected)
    if tests.unjudged:
        count, of = len(tests.unjudged), tests.mutants + tests.variants
        yield f"  ✗ no verdict on {count} of {of} programs: they count as not found, and as not left alone"
