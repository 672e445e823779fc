"""Which exercises there are. Each is a module with a function `exercise`, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from companion.exercises.exercise import Exercise

__all__ = ["NAMES", "load"]

NAMES: tuple[str, ...] = ("distilbert", "broken-transformer", "deployment")
"""What `load` takes."""


def load(name: str) -> Exercise:
    """Open an exercise.

    Parameters
    ----------
    name : str
        One of `NAMES`.

    Returns
    -------
    Exercise
        A fresh one: nothing done, no hint given.

    Raises
    ------
    ValueError
        When there is no such exercise.
    """
    if name not in NAMES:
        raise ValueError(f"there is no exercise {name!r}, expected one of: {', '.join(NAMES)}")
    found: Exercise = import_module(f"companion.exercises.{name.replace('-', '_')}").exercise()
    return found
