"""Compares a window of answers with a reference: what moved, by how much, and whether that is an alarm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from companion.deployment.watching.columns import Columns
from companion.deployment.watching.dependence import block_for, design_effect, series_of
from companion.deployment.watching.measures import Measure, measures_of
from companion.deployment.watching.permutation import Cuts, adjusted, cuts_for
from companion.deployment.watching.power import answers_needed, detectable_shift
from companion.deployment.watching.report import Change, DriftReport, LabelShare, Span
from companion.inference.intervals import LEVEL, Estimate

__all__ = ["DriftSettings", "TooFewAnswersError", "compare_windows"]

Floats = NDArray[np.float64]

_FEWEST_BLOCKS = 10
"""In a window: with fewer, two cuts hardly differ."""

_SEVERAL = 1 << 20


@dataclass(frozen=True)
class DriftSettings:
    """When a window is an alarm, and which windows are too small to judge.

    Parameters
    ----------
    false_alarms : float
        The share of windows without any drift that give an alarm all the same.
    shift : float
        A window has to be large enough to show, in 4 of 5 cases, a label's share moving this far from one
        half.
    block : int, optional
        Answers in a row that belong together. Default: found in the reference, or in the window where the
        reference is texts without times; see `block_for`.
    permutations : int, optional
        Random cuts to compare with. Default: enough.
    seed : int
        Draws them.

    Raises
    ------
    ValueError
        When a number makes no sense.
    """

    false_alarms: float = 0.01
    shift: float = 0.2
    block: int | None = None
    permutations: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that would be misread."""
        if not 1e-4 <= self.false_alarms <= 0.5:
            raise ValueError(
                f"false_alarms is {self.false_alarms}, expected a share of windows between 0.0001 and 0.5"
            )
        if not 0 < self.shift <= 0.5:
            raise ValueError(
                f"shift is {self.shift}, expected a difference of shares above 0 and at most 0.5"
            )
        for name in ("block", "permutations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")


class TooFewAnswersError(ValueError):
    """A window or its reference is too small to be judged.

    Attributes
    ----------
    needed : int or None
        Answers that a window has to have; None where the reference is what is too small.
    """

    def __init__(self, message: str, needed: int | None) -> None:
        super().__init__(message)
        self.needed = needed


def compare_windows(
    reference: Columns,
    current: Columns,
    *,
    settings: DriftSettings | None = None,
    across_versions: bool = False,
    cuts: Cuts | None = None,
) -> DriftReport:
    """Compare a window with a reference.

    Without drift (the window's answers are drawn like the reference's, in blocks that do not depend on each
    other) an alarm is as rare as the settings say, over references and windows together; that holds for any
    number of answers, any distribution and however the measures depend on each other. One unlucky reference
    can make all windows that are compared with it alarm more often: the larger it is, the less.

    Parameters
    ----------
    reference : Columns
        Answers from when all was well.
    current : Columns
        Answers to judge, none of them in the reference.
    settings : DriftSettings, optional
    across_versions : bool
        Whether the two may be of different model versions: then a change of the predictions may be the
        model's own.
    cuts : Cuts, optional
        Of an earlier comparison of the same sizes, to save their making.

    Returns
    -------
    DriftReport

    Raises
    ------
    TooFewAnswersError
        When the window could not show a shift as the settings want it.
    ValueError
        When the two are of different versions, or of models with different labels.
    """
    settings = settings or DriftSettings()
    _check_comparable(reference, current, across_versions)
    block = settings.block or common_block(reference, current)
    effect = _largest_effect(reference, block)
    # The newest whole blocks on both sides.
    reference = reference.take(slice(len(reference) % block, None))
    current = current.take(slice(len(current) % block, None))
    known = [
        name
        for name, values in current.inputs.items()
        if np.isfinite(values).all() and np.isfinite(reference.inputs[name]).all()
    ]
    tested = len(known) + (2 if current.is_regression else 3)
    _check_enough(reference, current, settings, block, effect, tested)
    measures, unknown = measures_of(reference, current)
    if cuts is None or (cuts.reference, cuts.window, cuts.block) != (len(reference), len(current), block):
        cuts = cuts_for(
            len(reference),
            len(current),
            block=block,
            false_alarms=settings.false_alarms,
            seed=settings.seed,
            permutations=settings.permutations,
        )
    values = adjusted(measures, cuts)
    return DriftReport(
        version=current.version,
        reference_version=reference.version,
        reference=_span(reference),
        window=_span(current),
        changes=tuple(
            _change(one, len(reference), float(p), settings.false_alarms, block)
            for one, p in zip(measures, values, strict=True)
        ),
        labels=_label_shares(reference, current, block),
        not_compared=tuple(unknown),
        false_alarms=settings.false_alarms,
        block=block,
        detectable_shift=detectable_shift(
            len(reference),
            len(current),
            false_alarms=settings.false_alarms,
            measures=len(measures),
            labels=max(2, len(current.labels)),
            design_effect=effect,
        ),
        permutations=cuts.compared,
    )


def common_block(reference: Columns, current: Columns) -> int:
    """Look in the reference for what belongs together; texts without times have no order to look at."""
    return block_for(reference if np.isfinite(reference.times).all() else current)


def _check_comparable(reference: Columns, current: Columns, across_versions: bool) -> None:
    if reference.version != current.version and not across_versions:
        raise ValueError(
            f"the reference was answered by model version {reference.version}, the window by "
            f"{current.version}: a change could be the model's. Take a reference of the same "
            "version, or say that you mean to compare two (across_versions; --reference-version on the "
            "command line)"
        )
    if reference.labels != current.labels:
        raise ValueError(
            f"version {reference.version} answers with {', '.join(reference.labels) or 'a number'}, version "
            f"{current.version} with {', '.join(current.labels) or 'a number'}: expected the same labels"
        )


def _largest_effect(reference: Columns, block: int) -> float:
    """Say how many answers are worth one, for the predictions."""
    series = series_of(reference)
    watched = [values for name, values in series.items() if name not in reference.inputs]
    return max((design_effect(values, block) for values in watched if len(values)), default=1.0)


def _check_enough(
    reference: Columns, current: Columns, settings: DriftSettings, block: int, effect: float, tested: int
) -> None:
    """Refuse windows that could not show what they are asked for."""
    having = f"the window has {len(current):,} answers, the reference {len(reference):,}"
    labels = max(2, len(current.labels))

    def needed(reference_size: int) -> int | None:
        return answers_needed(
            settings.shift,
            reference=reference_size,
            false_alarms=settings.false_alarms,
            measures=tested,
            labels=labels,
            design_effect=effect,
        )

    purpose = (
        f"to show a label's share moving by {settings.shift:.0%} in 4 of 5 windows at "
        f"{settings.false_alarms:.2%} false alarms"
    )
    tied = f" (neighbours are alike: blocks of {block})" if block > 1 else ""
    window = needed(len(reference)) if len(reference) else None
    if window is None or len(reference) < 2 * _FEWEST_BLOCKS * block:
        least = max(needed(_SEVERAL) or 0, _FEWEST_BLOCKS * block)
        raise TooFewAnswersError(
            f"{having}{tied}: {purpose} both need more than {max(least, 2 * _FEWEST_BLOCKS * block):,}, "
            f"such as {4 * least:,} in the reference. Wait for more answers, or ask for a larger --shift",
            None,
        )
    window = max(window, _FEWEST_BLOCKS * block)
    window = math.ceil(window / block) * block
    if len(current) < window:
        raise TooFewAnswersError(
            f"{having}{tied}: {purpose} a window needs {window:,} answers. Wait for more, take a larger "
            "--window, or ask for a larger --shift",
            window,
        )


def _change(measure: Measure, reference: int, p: float, false_alarms: float, block: int) -> Change:
    before, now = measure.shown[:reference], measure.shown[reference:]
    is_label = measure.test == "shares"
    return Change(
        measure=measure.name,
        kind=measure.kind,
        test=measure.test,
        shown_as=measure.shown_as,
        reference=None if is_label else float(before.mean()),
        window=None if is_label else float(now.mean()),
        difference=None if is_label else _difference(before, now, block),
        distance=_distance(measure, reference),
        p=p,
        alarm=p <= false_alarms,
    )


def _label_shares(reference: Columns, current: Columns, block: int) -> tuple[LabelShare, ...]:
    shares = []
    for place, label in enumerate(reference.labels):
        before, now = ((side.chosen == place).astype(np.float64) for side in (reference, current))
        shares.append(
            LabelShare(label, float(before.mean()), float(now.mean()), _difference(before, now, block))
        )
    return tuple(shares)


def _difference(before: Floats, now: Floats, block: int) -> Estimate:
    """Estimate the difference of two means, with an interval that also holds for shares near 0 and 1.

    Shares get two made-up answers on either side, one of each kind [1]_.

    References
    ----------
    .. [1] Agresti and Caffo, "Simple and Effective Confidence Intervals for Proportions and Differences of
       Proportions Result from Adding Two Successes and Two Failures", The American Statistician 54, 2000.
    """
    is_share = all(bool(((side == 0) | (side == 1)).all()) for side in (before, now))
    made_up = np.array([0.0, 1.0]) if is_share else np.array([])
    means, variance = [], 0.0
    for side in (before, now):
        padded = np.concatenate([side, made_up])
        means.append(float(padded.mean()))
        variance += float(padded.var()) / len(padded) * design_effect(side, block)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt(variance)
    value, middle = float(now.mean() - before.mean()), means[1] - means[0]
    return Estimate(value, min(value, middle - half), max(value, middle + half))


def _distance(measure: Measure, reference: int) -> float:
    """Give the largest difference of the shares below a value; for labels, half the sum of differences."""
    sides = (measure.cells[:reference], measure.cells[reference:])
    before, now = (np.bincount(side, minlength=measure.width) / len(side) for side in sides)
    if measure.test == "shares":
        return float(np.abs(now - before).sum() / 2)
    return float(np.abs(np.cumsum(now - before)).max())


def _span(columns: Columns) -> Span:
    return Span(len(columns), float(columns.times[0]), float(columns.times[-1]))
