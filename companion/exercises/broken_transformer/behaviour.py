"""What a behaviour is: a function from a module and a seed to numbers, under a name.

This file and those with the behaviours import nothing of the course but each other, so that they can be sent
to the process in which submitted code runs (`behaviours.sources`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

__all__ = ["BEHAVIOURS", "WORDS", "Behaviour", "behaviour", "measure", "names_of"]

WORDS = 30
"""Token ids that behaviours draw from."""


@dataclass(frozen=True)
class Behaviour:
    """One thing that code does.

    Attributes
    ----------
    name : str
    file : {"model.py", "train.py"}
    says : str
        What is wrong where it differs, without naming a cause.
    tolerance : float
        Relative to the largest right number.
    within : tuple of (float, float)
        Bounds for each number instead, where there is more than one right answer.
    function : callable
        Takes the module and a seed; returns nested lists of numbers.
    """

    name: str
    file: str
    says: str
    tolerance: float
    within: tuple[tuple[float, float], ...]
    function: Callable[[Any, int], Any]


BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(
    name: str, file: str, says: str, tolerance: float = 1e-3, within: tuple[tuple[float, float], ...] = ()
) -> Callable[[Callable[[Any, int], Any]], Callable[[Any, int], Any]]:
    """Add a function to `BEHAVIOURS`."""

    def register(function: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        BEHAVIOURS[name] = Behaviour(name, file, says, tolerance, within, function)
        return function

    return register


def measure(name: str, module: ModuleType | SimpleNamespace, seed: int) -> Any:
    """Return one behaviour: nested lists of numbers, or a sentence for an exception."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return BEHAVIOURS[name].function(module, seed)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def names_of(file: str) -> Sequence[str]:
    """Return the names of a file's behaviours."""
    return [name for name, what in BEHAVIOURS.items() if what.file == file]
