"""Judges repaired files by what they do: on inputs drawn afresh, against right code that runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from companion.debugging.zoo.bug import Bug
from companion.exercises.broken_transformer import behaviours
from companion.exercises.broken_transformer.comparing import broken
from companion.exercises.broken_transformer.planted import Planted, breaks, right_behaviours
from companion.grading.broken_transformer.marks import Repair, Repairs
from companion.grading.broken_transformer.strangers import strangers
from companion.grading.sandbox import Sandbox

__all__ = ["judge_repairs"]


def judge_repairs(
    sandbox: Sandbox,
    files: Mapping[str, str],
    planted: Planted,
    seeds: Sequence[int],
    *,
    seconds: float = 6.0,
    pool: Sequence[Bug] | None = None,
) -> Repairs:
    """Judge ``model.py`` and ``train.py``.

    Parameters
    ----------
    sandbox : Sandbox
    files : mapping of str to str
        The texts that were handed in, by their names.
    planted : Planted
    seeds : sequence of int
        Each draws other inputs. A behaviour is right when it is right for all.
    seconds : float
        Processor time for each file and seed.
    pool : sequence of Bug, optional
        What `deal` was given.
    """
    wrong: set[str] = set()
    errors: dict[str, str] = {}
    for file in ("model.py", "train.py"):
        for seed in seeds:
            found, error = _behaviours(sandbox, files, file, seed, seconds)
            wrong |= broken(right_behaviours(file, seed), found)
            if error:
                errors[file] = f"{file}: {error}"
                break
    touched = frozenset[str]().union(*map(breaks, planted.bugs))
    untouched = set(behaviours.BEHAVIOURS) - touched
    bugs = tuple(
        Repair(bug.family, bug.title, not marks & wrong, tuple(sorted(marks & wrong)))
        for bug, marks in zip(planted.bugs, planted.marks, strict=True)
    )
    kept = 1 - len(wrong & untouched) / len(untouched)
    foreign = strangers({name: files[name] for name in files if name not in errors}, planted, wrong, pool)
    return Repairs(
        bugs,
        kept,
        broken=tuple(sorted(wrong & untouched)),
        errors=tuple(errors.values()),
        strangers=tuple(bug.title for bug in foreign),
        unread=tuple(errors),
    )


def _behaviours(
    sandbox: Sandbox, files: Mapping[str, str], file: str, seed: int, seconds: float
) -> tuple[Mapping[str, Any], str]:
    """Run a file's behaviours apart; return them, and what was wrong with the run."""
    if file not in files:
        return {}, "it was not handed in"
    # One file at a time: no bug of one shows in the other, and neither can answer for the other.
    modules = {**behaviours.sources(), file: files[file]}
    inputs = {"file": file, "seed": seed, "names": list(behaviours.names_of(file))}
    outcome = sandbox.run(modules, "behaviours:run_all", inputs, seconds=seconds)
    if outcome.ended != "returned" or not isinstance(outcome.value, dict):
        return {}, f"{outcome.ended}: {outcome.error or 'no behaviours came back'}"
    return outcome.value, ""
