"""Judges a learner's tests: on wrong programs that they have not seen, and on right ones."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence

from companion.grading.broken_transformer import runner
from companion.grading.broken_transformer.marks import Tests
from companion.grading.broken_transformer.programs import Program
from companion.grading.sandbox import Sandbox

__all__ = ["judge_tests"]

_MOST, _LATE = 100, 2


def judge_tests(
    sandbox: Sandbox,
    text: str | None,
    wrong: Sequence[Program],
    right: Sequence[Program],
    *,
    seed: int,
    seconds: float = 3.0,
    budget: float = 45.0,
) -> Tests:
    """Run ``test_broken.py`` on each program, each time in a process of its own.

    A wrong program is killed when a test fails in it; a right one is spared when there are tests and all
    pass. A run that ends without a verdict (no time left, no answer, an exit) does neither.

    Parameters
    ----------
    sandbox : Sandbox
    text : str, optional
        None when it was not handed in.
    wrong, right : sequence of Program
    seed : int
        For torch, before each test.
    seconds, budget : float
        Processor time for one program, and wall time for all.
    """
    if text is None:
        titles = tuple(program.title for program in (*right, *wrong))
        missing = ("test_broken.py was not handed in",)
        return Tests(len(wrong), len(right), 0, 0, errors=missing, unjudged=titles)
    until = time.perf_counter() + budget
    errors: dict[str, None] = {}
    verdicts: list[tuple[str, ...] | None] = []
    # Right ones first: the programs that no budget must cut off, and nothing tells the tests which is which.
    for program in (*right, *wrong):
        left = until - time.perf_counter()
        if left <= 0.5 or len(errors) > _LATE:
            errors[
                f"the tests took more than {budget:g} s, or were stopped too often: the programs that "
                "were left "
                "do not count as found"
            ] = None
            verdicts.append(None)
            continue
        verdicts.append(_verdict(sandbox, text, program, seed, min(seconds, left / 2), errors))
    spared, killed = verdicts[: len(right)], verdicts[len(right) :]
    return Tests(
        mutants=len(wrong),
        variants=len(right),
        killed=sum(bool(verdict) for verdict in killed),
        spared=sum(verdict == () for verdict in spared),
        survivors=tuple(p.title for p, v in zip(wrong, killed, strict=True) if v == ()),
        objected=tuple(f"{p.title} ({'; '.join(v)})" for p, v in zip(right, spared, strict=True) if v),
        errors=tuple(errors),
        unjudged=tuple(p.title for p, v in zip((*right, *wrong), verdicts, strict=True) if v is None),
    )


def _verdict(
    sandbox: Sandbox, text: str, program: Program, seed: int, seconds: float, errors: dict[str, None]
) -> tuple[str, ...] | None:
    """Return which tests objected to a program, and how; None without a verdict."""
    files = {
        "model.py": program.model,
        "train.py": program.train,
        "test_broken.py": text,
        "runner.py": inspect.getsource(runner),
    }
    outcome = sandbox.run(files, "runner:run_tests", {"seed": seed}, seconds=seconds)
    if outcome.ended != "returned":
        errors[f"test_broken.py: {outcome.ended}: {outcome.error}"] = None
        return None
    found = outcome.value
    if not isinstance(found, dict) or not all(isinstance(said, str) for said in found.values()):
        errors["test_broken.py: no verdict came back"] = None
        return None
    if not 0 < len(found) <= _MOST:
        errors[f"test_broken.py has {len(found)} tests, expected 1 to {_MOST}"] = None
        return None
    return tuple(f"{name[:80]}: {said[:160]}" for name, said in found.items() if said)
