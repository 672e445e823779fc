"""Exercise 2, debug a broken transformer: three bugs in two files, and tests that would have found them.

`deal` writes the folder, `exercise` checks it as the learner goes. Both judge by behaviour: what code does on
drawn inputs, never how it is written.
"""

from __future__ import annotations

from collections.abc import Sequence

from companion.debugging.zoo.bug import Bug
from companion.exercises.broken_transformer.dealing import HANDED_IN, deal, seed_of
from companion.exercises.broken_transformer.planted import FAMILIES, Seed, plant
from companion.exercises.broken_transformer.repairing import load_module, repair_step
from companion.exercises.broken_transformer.testing import tests_step
from companion.exercises.exercise import Exercise

__all__ = ["HANDED_IN", "Seed", "deal", "exercise", "load_module", "seed_of"]


def exercise(seed: Seed = "default", *, pool: Sequence[Bug] | None = None) -> Exercise:
    """Return the exercise, with nothing done.

    Parameters
    ----------
    seed : int or "default"
        What `deal` was given.
    pool : sequence of Bug, optional
        What `deal` was given.

    Returns
    -------
    Exercise
        Steps: ``data``, ``training``, ``architecture``, ``tests``. Each takes the learner's folder.
    """
    planted = plant(seed, pool)
    repairs = [repair_step(family, planted) for family in reversed(FAMILIES)]
    return Exercise("broken-transformer", "Debug a broken transformer", (*repairs, tests_step(planted)))
