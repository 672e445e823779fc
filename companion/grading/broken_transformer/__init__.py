"""Grades exercise 2: repairs by behaviour, the diagnosis by place and family, tests by what they find."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from companion.debugging.zoo.bug import Bug
from companion.exercises.broken_transformer import HANDED_IN, seed_of
from companion.exercises.broken_transformer.planted import plant
from companion.grading.broken_transformer.diagnosis import judge_diagnosis
from companion.grading.broken_transformer.marks import Diagnosis, Grade, Repair, Repairs, Tests, Weights
from companion.grading.broken_transformer.programs import Program, right_programs, wrong_programs
from companion.grading.broken_transformer.repairs import judge_repairs
from companion.grading.broken_transformer.tests import judge_tests
from companion.grading.sandbox import Sandbox

__all__ = ["Diagnosis", "Grade", "Program", "Repair", "Repairs", "Tests", "Weights", "grade"]

_LARGEST = 200_000


def grade(
    folder: str | Path,
    *,
    seed: int | None = None,
    dealt: int | None = None,
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
    dealt : int, optional
        The seed that the folder was dealt with. Default: what its ``exercise.json`` says. Whoever grades
        others gives it: a learner can write another number there.
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
        When there is no such folder, or `dealt` is not given and ``exercise.json`` is missing.
    ValueError
        When ``exercise.json`` is not what `deal` wrote.
    """
    start = time.perf_counter()
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: expected one with {', '.join(HANDED_IN)}")
    if sandbox is None:
        with Sandbox() as own:
            return grade(path, seed=seed, dealt=dealt, pool=pool, weights=weights, sandbox=own)
    planted = plant(seed_of(path) if dealt is None else dealt, pool)
    drawn = secrets.randbits(31) if seed is None else seed
    files = {name: text for name in HANDED_IN if (text := _read(path / name)) is not None}
    repairs = judge_repairs(sandbox, files, planted, (drawn, drawn + 1))
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
    return Grade(repairs, diagnosis, tests, weights or Weights(), isolation, took)


def _read(path: Path) -> str | None:
    """Return a file's text; None for what is no file of its own, too large, or no text."""
    # A link could name any file of the grader's.
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None
