"""The steps ``data``, ``training`` and ``architecture``: the bug is gone, and nothing else is broken."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

from companion.debugging.zoo import editing
from companion.exercises.broken_transformer.behaviours import BEHAVIOURS
from companion.exercises.broken_transformer.comparing import broken
from companion.exercises.broken_transformer.dealing import seed_of
from companion.exercises.broken_transformer.planted import Planted, behaviours_of, breaks, right_behaviours
from companion.exercises.exercise import Step
from companion.exercises.probing import Failed, NotDone, Probe

__all__ = ["load_module", "repair_step"]

_FILE = {"architecture": "model.py", "training": "train.py", "data": "train.py"}
_FIRST_HINT = {
    "architecture": "Which parts of a transformer could be missing or misplaced without any error? "
    "Go through the forward pass line by line, and say for each what would change without it.",
    "training": "What happens between two batches, to the loss, the gradients, the learning rate and the "
    "weights? Write down what you expect of each, then print them.",
    "data": "What does the model get to see of one text? Follow it from the file to the model, print every "
    "tensor, and say for each number in it what it should be.",
}


def repair_step(family: str, planted: Planted) -> Step:
    """Return the step for the bug of a family.

    Parameters
    ----------
    family : {"architecture", "training", "data"}
    planted : Planted
    """
    bug, marks = planted.of(family)
    file = _FILE[family]
    others = frozenset[str]().union(*(breaks(other) for other in planted.bugs if other is not bug))

    def examine(work: Any, probe: Probe) -> str:
        path = folder_of(work, planted) / file
        module = probe.call(load_module, path, what=f"import {file}")
        found = probe.call(behaviours_of, file, module, probe.seed, what=f"run {file} on drawn inputs")
        wrong = broken(right_behaviours(file, probe.seed), found)
        for name in sorted(marks):
            probe.show(
                name, "as in right code", "another" if name in wrong else "the same", name not in wrong
            )
        _report(marks & wrong, found, "not repaired yet")
        _report(wrong - marks - others, found, "this bug is gone, but something else broke")
        if wrong:
            probe.remarks.append("The other bug of this file is still there, or its repair is not complete.")
        return "what this bug changed is as it should be."

    return Step(
        name=family,
        title=f"Repair the {family}",
        task=f"Find the {family} bug in {file} and repair it. Give the check the folder that you work in.",
        hints=(_FIRST_HINT[family], bug.hint, bug.fix),
        examine=examine,
        seconds=60.0,
    )


def folder_of(work: Any, planted: Planted) -> Path:
    """Return the learner's folder.

    Raises
    ------
    NotDone, Failed
        When nothing was given, it is no folder, or it was dealt with another seed than `planted`.
    """
    if work is None or work is ...:
        raise NotDone("nothing was given")
    if not isinstance(work, str | Path):
        raise Failed(f"a {type(work).__name__} was given, expected the folder that you work in.")
    if not Path(work).is_dir():
        raise Failed(f"there is no folder {work}: expected the one that `deal` has written.")
    try:
        own = seed_of(work)
    except (FileNotFoundError, ValueError):  # the files can be judged without it
        own = planted.seed
    if own != planted.seed:
        raise Failed(
            f"{work} was dealt with the seed {own!r}, and this exercise is for {planted.seed!r}: "
            f"use exercise(seed={own!r})."
        )
    return Path(work)


def load_module(path: Path) -> ModuleType:
    """Run a file as a module of its own, whatever was imported under its name before."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    source = path.read_text(encoding="utf-8")
    return module_of(source, path.stem, str(path))


def module_of(source: str, name: str, filename: str) -> ModuleType:
    """Run a text as a module of its own, under a name that no other has."""
    return editing.module_of(source, f"learner_{name}_{secrets.token_hex(4)}", filename)


def _report(wrong: frozenset[str], found: dict[str, Any], opening: str) -> None:
    if wrong:
        name = min(wrong)
        raised = f" It raised {found[name]}." if isinstance(found.get(name), str) else ""
        more = f" {len(wrong) - 1} more behaviours differ." if len(wrong) > 1 else ""
        raise Failed(f"{opening}: {BEHAVIOURS[name].says}.{raised}{more}")
