"""Grades exercise 2: repairs by behaviour, the diagnosis by place and family, tests by what they find."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from companion.debugging.zoo.bug import Bug
from companion.exercises.broken_transformer import HANDED_IN, Seed, seed_of
from companion.exercises.broken_transformer.planted import plant
from companion.grading.broken_transformer.diagnosis import judge_diagnosis
from companion.grading.broken_transformer.marks import Diagnosis, Grade, Repair, Repairs, Tests, Weights
from companion.grading.broken_transformer.programs import Program, right_programs, wrong_programs
from companion.grading.broken_transformer.repairs import judge_repairs
from companion.grading.broken_transformer.tests import judge_tests
from companion.grading.sandbox import Sandbox

__all__ = ["Diagnosis", "Grade", "Program", "Repair", "Repairs", "Tests", "Weights", "grade", "nothing"]

_LARGEST = 200_000


def grade(
    folder: str | Path,
    *,
    seed: int | None = None,
    dealt: Seed | None = None,
    pool: Sequence[Bug] | None = None,
    weights: Weights | None = None,
    sandbox: Sandbox | None = None,
) -> Grade:
    """Grade a folder that was handed in.

    Parameters
    ----------
    folder : str or Path
        With the files in `HANDED_IN`. One that is missing costs its part.
    seed : int, optional
        Draws inputs and mutants. Default: another one each time.
    dealt : int or "default", optional
        What the folder was dealt with. Whoever grades others gives it: without it, the folder's own
        ``exercise.json`` is believed, which a learner can edit. Either way a bug that is in the files and was
        not dealt takes a repair away, so that untouched files of another deal score nothing.
    pool : sequence of Bug, optional
        What `deal` was given.
    weights : Weights, optional
    sandbox : Sandbox, optional
        One that is open already, for many gradings.

    Returns
    -------
    Grade

    Raises
    ------
    FileNotFoundError
        When there is no such folder. Whatever is in it, or is missing from it, costs marks instead.
    """
    start = time.perf_counter()
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: expected one with {', '.join(HANDED_IN)}")
    if sandbox is None:
        with Sandbox() as own:
            return grade(path, seed=seed, dealt=dealt, pool=pool, weights=weights, sandbox=own)
    deal, reason, notes = _deal_of(path, dealt)
    if deal is None:
        return nothing(f"{reason}. Whoever grades can name the deal: give `dealt`", weights)
    planted = plant(deal, pool)
    drawn = secrets.randbits(31) if seed is None else seed
    files = {name: text for name in HANDED_IN if (text := _read(path / name)) is not None}
    repairs = judge_repairs(sandbox, files, planted, (drawn, drawn + 1), pool=pool)
    diagnosis = judge_diagnosis(files.get("diagnosis.json"), planted)
    tests = judge_tests(
        sandbox,
        files.get("test_broken.py"),
        wrong_programs(planted, drawn, pool),
        right_programs(),
        seed=drawn,
    )
    isolation = sandbox.run({"nothing.py": "nothing = lambda _: 0"}, "nothing:nothing", None).isolation
    took = time.perf_counter() - start
    return Grade(
        repairs, diagnosis, tests, weights or Weights(), isolation, took, dealt=deal, notes=tuple(notes)
    )


def nothing(reason: str, weights: Weights | None = None) -> Grade:
    """Return the grade of what cannot be graded: 0, and why."""
    parts = Repairs((), 0.0), Diagnosis((), ()), Tests(0, 0, 0, 0)
    return Grade(*parts, weights or Weights(), (), 0.0, errors=(reason,))


def _deal_of(path: Path, dealt: Seed | None) -> tuple[Seed | None, str, list[str]]:
    """Return the deal that a folder is graded as, why there is none, and what its file says against it."""
    own: Seed | None = None
    reason = ""
    try:
        own = seed_of(path)
    except (ValueError, OSError) as error:
        reason = str(error)
    if dealt is None:
        return own, reason, ["the deal is what exercise.json says, which can be edited: give `dealt`"]
    if own == dealt:
        return dealt, "", []
    says = reason or f"exercise.json says that the deal is {own!r}"
    return dealt, "", [f"{says}; graded as the deal {dealt!r}"]


def _read(path: Path) -> str | None:
    """Return a file's text; None for what is no file of its own, too large, or no text."""
    # A link could name any file of the grader's.
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None
