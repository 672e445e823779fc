"""Reads what a learner's function returned, trusting none of its methods, and compares it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from companion.exercises.probing import Failed

__all__ = ["best_match", "close", "number", "plain", "same", "shown"]


def plain(value: Any) -> torch.Tensor | None:
    """Return a tensor as a plain one that shares its memory and graph, or None for anything else."""
    if not isinstance(value, torch.Tensor):
        return None
    with torch._C.DisableTorchFunctionSubclass():  # a subclass may answer any question as it likes
        return value.as_subclass(torch.Tensor) if type(value) is not torch.Tensor else value


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two tensors have the same shape and values, NaN included."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    first, second = first.detach(), second.detach()
    equal = first.eq(second)
    return bool((equal | (first.ne(first) & second.ne(second))).all())


def number(value: Any) -> float:
    """Read one finite number: a float, an int, a NumPy scalar, or a tensor or array with one element.

    Raises
    ------
    Failed
        When it is something else, has more elements, or is not finite.
    """
    tensor = plain(value)
    if tensor is None and isinstance(value, np.ndarray | np.generic):
        tensor = torch.as_tensor(np.asarray(value))
    if tensor is None and type(value) in (float, int):
        tensor = torch.tensor(float(value), dtype=torch.float64)
    if tensor is None:
        raise Failed(f"it returned a {type(value).__name__}, expected one number: a tensor or a float.")
    if tensor.numel() != 1:
        raise Failed(
            f"it returned a tensor of shape {tuple(tensor.shape)}, expected one number: the sum is missing."
        )
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise Failed(f"it returned a {tensor.dtype}, expected a number.")
    found = float(tensor.detach().reshape(()).to(torch.float64).item())
    if not math.isfinite(found):
        raise Failed(f"it returned {found}, expected a finite number.")
    return found


def close(found: float, expected: float, tolerance: float = 1e-4) -> bool:
    """Tell whether two numbers agree but for rounding in single precision."""
    return abs(found - expected) <= tolerance * max(1e-3, abs(expected))


def shown(value: float) -> str:
    """Write a number with six significant digits."""
    return f"{value:.6g}"


def best_match(
    found: Sequence[float], candidates: Iterable[tuple[tuple[str, ...], Sequence[float]]]
) -> tuple[str, ...]:
    """Name the mistakes that explain wrong numbers, as few as possible.

    Parameters
    ----------
    found : sequence of float
        What the learner's function gave, case by case.
    candidates : iterable of (tuple of str, sequence of float)
        Names of mistakes, and what a function that makes exactly these gives.

    Returns
    -------
    tuple of str
        Empty when none agrees in every case.
    """
    agreeing = [
        names
        for names, values in candidates
        if names and all(close(got, value) for got, value in zip(found, values, strict=True))
    ]
    return min(agreeing, key=len, default=())
