"""How a learning rate follows the batch size: three published rules, each with the range it was shown in."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ScaledRate", "lamb_rate", "linear_scaling", "square_root_scaling"]


@dataclass(frozen=True)
class ScaledRate:
    """What a rule makes of a learning rate.

    Attributes
    ----------
    learning_rate : float
    factor : float
        By which the rate was multiplied.
    holds : bool
        Whether the new batch lies where the rule was shown to work.
    note : str
        The rule, its source and its range.
    betas : tuple of two floats, optional
        What the rule makes of Adam's betas, where it says something about them.
    """

    learning_rate: float
    factor: float
    holds: bool
    note: str
    betas: tuple[float, float] | None = None


def linear_scaling(learning_rate: float, *, from_batch: int, to_batch: int) -> ScaledRate:
    """Scale a rate in proportion to the batch: the rule for SGD with momentum (Goyal et al. 2017).

    Shown for ResNet-50 on ImageNet from 64 to 8,192 images a batch, with a warm-up of 5 epochs; above, the
    error rises. For Adam nothing in that paper says that it holds.

    Parameters
    ----------
    learning_rate : float
        A rate that works at `from_batch`.
    from_batch, to_batch : int
        Examples per optimizer step.

    Returns
    -------
    ScaledRate

    Raises
    ------
    ValueError
        If the rate or a batch size is not positive.
    """
    _check(learning_rate, from_batch, to_batch)
    factor = to_batch / from_batch
    return ScaledRate(
        learning_rate * factor,
        factor,
        64 <= to_batch <= 8192,
        "rate x k for a batch k times as large: SGD with momentum, 64 to 8,192 images (Goyal et al. 2017)",
    )


def square_root_scaling(
    learning_rate: float, *, from_batch: int, to_batch: int, betas: tuple[float, float] = (0.9, 0.999)
) -> ScaledRate:
    """Scale a rate with the square root of the batch: the rule for Adam (Malladi et al. 2022).

    A batch k times as large takes the rate times sqrt(k), 1 - beta times k for both betas, and epsilon over
    sqrt(k). The rule follows from gradients in which noise dominates, and ends at the latest where
    k (1 - beta1) reaches 1: with a beta1 of 0.9 that is a batch ten times as large.

    Parameters
    ----------
    learning_rate : float
        A rate that works at `from_batch`.
    from_batch, to_batch : int
        Examples per optimizer step.
    betas : tuple of two floats
        Adam's betas at `from_batch`, each at least 0 and below 1.

    Returns
    -------
    ScaledRate
        Its betas are None where there are none to follow the rule with.

    Raises
    ------
    ValueError
        If the rate or a batch size is not positive, or a beta is outside its range.
    """
    _check(learning_rate, from_batch, to_batch)
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}, expected two numbers from 0 up to, not including, 1")
    ratio = to_batch / from_batch
    first, second = (1 - ratio * (1 - beta) for beta in betas)
    holds = first > 0 and second > 0
    return ScaledRate(
        learning_rate * math.sqrt(ratio),
        math.sqrt(ratio),
        holds,
        "rate x sqrt(k) for a batch k times as large, 1 - beta x k: Adam, while k (1 - beta1) < 1 "
        "(Malladi et al. 2022)",
        (first, second) if holds else None,
    )


def lamb_rate(batch_size: int) -> ScaledRate:
    """Return LAMB's rate for pre-training BERT-large: 5e-3 / 8 at a batch of 512, then by the square root.

    Shown from 512 to 32,768 sequences without any other tuning (You et al. 2020, table 4).

    Parameters
    ----------
    batch_size : int
        Sequences per optimizer step.

    Returns
    -------
    ScaledRate

    Raises
    ------
    ValueError
        If the batch size is not positive.
    """
    base = 5e-3 / 8
    _check(base, 512, batch_size)
    factor = math.sqrt(batch_size / 512)
    note = "6.25e-4 x sqrt(batch / 512): LAMB, 512 to 32,768 sequences (You et al. 2020)"
    return ScaledRate(base * factor, factor, 512 <= batch_size <= 32768, note)


def _check(learning_rate: float, from_batch: int, to_batch: int) -> None:
    """Refuse what cannot be scaled."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate is {learning_rate}, expected a finite number above 0")
    for name, batch in (("from_batch", from_batch), ("to_batch", to_batch)):
        if batch < 1:
            raise ValueError(f"{name} is {batch}, expected at least 1 example per step")
