"""How often a reference alarms at itself, and how often at a shift that is put into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from companion.deployment.watching.columns import Columns
from companion.deployment.watching.dependence import block_for
from companion.deployment.watching.drift import DriftSettings, compare_windows
from companion.deployment.watching.permutation import cuts_for
from companion.inference.intervals import Estimate, proportion

__all__ = ["Rehearsal", "lengthened", "rehearse", "relabelled", "unsure"]

Shift = Callable[[Columns, np.random.Generator], Columns]


@dataclass(frozen=True)
class Rehearsal:
    """How often windows were alarms.

    Attributes
    ----------
    alarms, windows : int
    rate : Estimate
        With the exact interval for independent windows.
    """

    alarms: int
    windows: int
    rate: Estimate


def rehearse(
    answers: Columns,
    *,
    window: int,
    rounds: int,
    shift: Shift | None = None,
    in_order: bool = False,
    settings: DriftSettings | None = None,
    seed: int = 0,
) -> Rehearsal:
    """Play drift detection on answers from when all was well.

    Each round takes a window out of them, shifts it, and compares it with what is left.

    Parameters
    ----------
    answers : Columns
    window : int
        Answers in each window.
    rounds : int
    shift : callable, optional
        Changes a window; without it every alarm is a false one.
    in_order : bool
        Whether a window is answers in a row, as in use. Otherwise the answers are shuffled first: then they
        are as independent as the test wants them, and the false alarms as rare as stated. More of them in
        order than shuffled show that time matters in these answers.
    settings : DriftSettings, optional
    seed : int

    Returns
    -------
    Rehearsal

    Raises
    ------
    ValueError
        As `compare_windows`.
    """
    if rounds < 1 or not 0 < window < len(answers):
        raise ValueError(
            f"rounds is {rounds} and window {window}, expected at least 1 round and a window smaller than "
            f"the {len(answers):,} answers"
        )
    rng = np.random.default_rng(seed)
    settings = settings or DriftSettings()
    settings = replace(settings, block=settings.block or (block_for(answers) if in_order else 1))
    block = settings.block or 1
    cuts, alarms = None, 0
    for number in range(rounds):
        order = np.arange(len(answers)) if in_order else rng.permutation(len(answers))
        start = int(rng.integers(len(answers) - window + 1))
        inside = answers.take(order[start : start + window])
        outside = answers.take(np.concatenate([order[:start], order[start + window :]]))
        if number % 20 == 0 and len(outside) >= block <= window:
            # Drawing cuts takes most of the time; twenty windows share them.
            sizes = (len(outside) // block * block, window // block * block)
            cuts = cuts_for(
                *sizes,
                block=block,
                false_alarms=settings.false_alarms,
                seed=int(rng.integers(1 << 31)),
                permutations=settings.permutations,
            )
        changed = shift(inside, rng) if shift is not None else inside
        alarms += compare_windows(outside, changed, settings=settings, cuts=cuts).drifted
    return Rehearsal(alarms, rounds, proportion(alarms, rounds))


def lengthened(factor: float) -> Shift:
    """Make texts longer: every text has `factor` times the characters."""

    def shift(window: Columns, rng: np.random.Generator) -> Columns:
        return replace(window, inputs=window.inputs | {"characters": window.inputs["characters"] * factor})

    return shift


def relabelled(share: float, label: int = 0) -> Shift:
    """Turn a share of all answers, of those with other labels, into the label at place `label`."""

    def shift(window: Columns, rng: np.random.Generator) -> Columns:
        others = np.flatnonzero(window.chosen != label)
        count = min(len(others), round(share * len(window)))
        chosen = window.chosen.copy()
        chosen[rng.choice(others, count, replace=False)] = label
        return replace(window, chosen=chosen)

    return shift


def unsure(amount: float) -> Shift:
    """Lower the largest probability of every answer by `amount`, not below that of equal shares."""

    def shift(window: Columns, rng: np.random.Generator) -> Columns:
        return replace(window, scores=np.maximum(window.scores - amount, 1 / max(1, len(window.labels))))

    return shift
