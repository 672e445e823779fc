"""Compares what code does with what right code does. The numbers come from outside: nothing is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from companion.exercises.broken_transformer.behaviours import BEHAVIOURS, Behaviour

__all__ = ["agrees", "broken"]

_DEPTH = 8


def broken(right: Mapping[str, Any], found: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the behaviours that differ, those that are missing included.

    Parameters
    ----------
    right, found : mapping of str to nested lists of numbers
        By the names in `BEHAVIOURS`. A sentence instead of numbers is an exception.
    """
    return frozenset(
        name for name, wanted in right.items() if not agrees(BEHAVIOURS[name], wanted, found.get(name))
    )


def agrees(behaviour: Behaviour, right: Any, found: Any) -> bool:
    """Tell whether numbers are those of a behaviour: the same shape, all finite, and close enough."""
    shape, numbers = _flatten(found)
    wanted_shape, wanted = _flatten(right)
    if shape != wanted_shape or len(numbers) != len(wanted):
        return False
    if not all(math.isfinite(number) for number in numbers):
        return False
    if behaviour.within:
        return all(
            low <= number <= high for number, (low, high) in zip(numbers, behaviour.within, strict=True)
        )
    room = behaviour.tolerance * max((abs(number) for number in wanted), default=0.0)
    return all(abs(a - b) <= room + 1e-9 for a, b in zip(numbers, wanted, strict=True))


def _flatten(value: Any, depth: int = 0) -> tuple[Any, Sequence[float]]:
    """Return the lengths of nested lists, and the numbers in them; anything else has a shape of its own."""
    if isinstance(value, bool) or not isinstance(value, int | float | list | tuple) or depth > _DEPTH:
        return object(), ()
    if isinstance(value, int | float):
        try:
            return None, (float(value),)
        except OverflowError:
            return object(), ()
    parts = [_flatten(part, depth + 1) for part in value]
    return [shape for shape, _ in parts], [number for _, numbers in parts for number in numbers]
