"""Which hyper-parameter matters, and how far a few trials can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from companion import plots
from companion.training.tuning.records import PHASES, PhaseName, TrialRecord, TuningResult
from companion.training.tuning.space import Options, Range, SearchSpace
from companion.training.tuning.storage import PLAN, load_studies, quiet, records

__all__ = ["Importance", "history_plot", "importance", "importance_plot"]

Method = Literal["fanova", "ped-anova"]
_FEW = 30


@dataclass(frozen=True)
class Importance:
    """How much each hyper-parameter matters.

    Attributes
    ----------
    method : {"fanova", "ped-anova"}
    shares : dict of str to float
        Sums to 1, the largest first.
    spreads : dict of str to tuple of two floats
        Lowest and highest share over resampled trials, the share itself included.
    trials : int
        What they were computed from.
    note : str
        How far they can be trusted.
    """

    method: Method
    shares: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    trials: int
    note: str

    def separated(self, name: str, other: str) -> bool:
        """Tell whether one is above another in every resampling: the spreads do not touch."""
        return self.spreads[name][0] > self.spreads[other][1]


def importance(
    storage: Path,
    *,
    phase: PhaseName = "coarse",
    method: Method = "fanova",
    resamples: int = 10,
    seed: int = 0,
) -> Importance:
    """Estimate how much each hyper-parameter matters, from the trials of one phase.

    ``fanova`` [1]_ is the share of the variance over the whole space that a random forest explains by one
    parameter alone. ``ped-anova`` [2]_ compares where the best quarter of the trials lies with where all of
    them lie. A parameter may matter for avoiding disaster and not for being among the best: then the two
    disagree.

    The parameters are handed to Optuna as places in their range. Its fANOVA integrates over plain values, and
    so would give nine tenths of the weight of a logarithmic range to its highest decade. Pruned trials count
    with their last report, diverged ones with the worst value of all: without them, the estimate would see
    only the part of the space where nothing went wrong.

    Under about 30 trials, and with five parameters, the order below the first place is mostly noise, and a
    parameter without any influence still gets a share. `Importance.spreads` shows that, from trials drawn
    again with replacement; they hold the noise of the choice of trials, not that of the seeds.

    Parameters
    ----------
    storage : Path
        The SQLite file that `tune` wrote.
    phase : {"coarse", "fine"}
        The coarse one covers the whole space evenly.
    method : {"fanova", "ped-anova"}
    resamples : int
        How often the trials are drawn again, at least 1.
    seed : int
        Of the forest and of the resampling.

    Returns
    -------
    Importance

    Raises
    ------
    FileNotFoundError, ValueError
        When there is no such search, or it has fewer than 8 trials or the same value in all of them.

    References
    ----------
    .. [1] Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance",
       ICML 2014.
    .. [2] Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
       Arbitrary Subspaces", IJCAI 2023.
    """
    if phase not in ("coarse", "fine") or method not in ("fanova", "ped-anova") or resamples < 1:
        raise ValueError(
            f"phase is {phase!r}, method {method!r}, resamples {resamples}: expected coarse or fine, fanova "
            "or ped-anova, and at least 1"
        )
    study = load_studies(storage)[phase]
    found = records(study, phase)
    plan = study.user_attrs[PLAN]
    points, values = _points(found, _space(plan)), _values(found, plan["higher_is_better"])
    if len(found) < 8 or len(set(values)) < 2:
        raise ValueError(
            f"the {phase} phase has {len(found)} finished trials with {len(set(values))} different values: "
            "expected at least 8 trials and 2 values"
        )
    shares = _shares(points, values, method, seed)
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(len(found), size=len(found)) for _ in range(resamples)]
    repeated = [
        _shares([points[i] for i in indices], [values[i] for i in indices], method, seed)
        for indices in drawn
        if len({values[i] for i in indices}) > 1
    ]
    spreads = {
        name: (min(every), max(every))
        for name in shares
        if (every := [shares[name], *(one[name] for one in repeated)])
    }
    return Importance(method, shares, spreads, len(found), _note(len(found), shares, spreads))


def importance_plot(found: Importance, *, alt: str | None = None) -> plots.Plot:
    """Draw the shares with their spreads.

    Parameters
    ----------
    found : Importance
    alt : str, optional
        The finding in words; by default it is written from the numbers.

    Returns
    -------
    Plot
    """
    listed = ", ".join(
        f"{name} {share:.2f} ({found.spreads[name][0]:.2f} to {found.spreads[name][1]:.2f})"
        for name, share in found.shares.items()
    )
    return plots.bars(
        list(found.shares),
        list(found.shares.values()),
        spreads=[found.spreads[name] for name in found.shares],
        unit=f"share of the importance ({found.method}, {found.trials} trials)",
        decimals=2,
        alt=alt or f"Importance by {found.method} over {found.trials} trials: {listed}. {found.note}",
    )


def history_plot(result: TuningResult, *, value: str = "value", alt: str | None = None) -> plots.Plot:
    """Draw the value of every trial in its order, phase by phase.

    Parameters
    ----------
    result : TuningResult
    value : str
        What the value is, with its unit, for the axis.
    alt : str, optional
        The finding in words; by default it is written from the numbers.

    Returns
    -------
    Plot
    """
    palette = plots.PALETTE
    with plots.style():
        figure, axes = plots.figure()
        start = 0
        for colour, phase in zip(palette.series, PHASES, strict=False):
            trials = [trial for trial in result.trials if trial.phase == phase]
            for state, marker in (("complete", "o"), ("pruned", "x")):
                shown = [trial for trial in trials if trial.state == state and trial.value is not None]
                label = phase if state == "complete" else f"{phase}, pruned"
                if shown:
                    places = [start + trial.slot + 1 for trial in shown]
                    axes.scatter(
                        places, [trial.value for trial in shown], 16, color=colour, marker=marker, label=label
                    )
            start += len(trials)
        axes.set(xlabel="trial", ylabel=value)
        axes.legend(fontsize=8)
        return plots.show(figure, alt=alt or _history_in_words(result))


def _history_in_words(result: TuningResult) -> str:
    best = max if result.higher_is_better else min
    parts = []
    for phase in PHASES:
        trials = [trial for trial in result.trials if trial.phase == phase]
        complete = [trial.value for trial in trials if trial.state == "complete" and trial.value is not None]
        pruned, diverged = (sum(trial.state == state for trial in trials) for state in ("pruned", "diverged"))
        ends = f"best {best(complete):.4g}" if complete else "none complete"
        parts.append(f"{phase}: {len(trials)} trials, {pruned} pruned, {diverged} diverged, {ends}")
    return f"Value of every trial. {'; '.join(parts)}. {result.choice.reason}"


def _space(plan: dict[str, Any]) -> SearchSpace:
    made: dict[str, Range | Options] = {}
    for name, (kind, arguments) in plan["space"].items():
        made[name] = Options(tuple(arguments["values"])) if kind == "Options" else Range(**arguments)
    return SearchSpace(made)


def _points(found: Sequence[TrialRecord], space: SearchSpace) -> list[dict[str, object]]:
    return [
        {
            name: trial.values[name] if isinstance(one, Options) else one.unit(trial.values[name])
            for name, one in space.dimensions.items()
        }
        for trial in found
    ]


def _values(found: Sequence[TrialRecord], higher_is_better: bool) -> list[float]:
    """Return what is to be minimised, with the worst value where a trial diverged."""
    signed = [None if one.value is None else (-one.value if higher_is_better else one.value) for one in found]
    worst = max((value for value in signed if value is not None), default=0.0)
    return [worst if value is None else value for value in signed]


def _shares(
    points: Sequence[dict[str, object]], values: Sequence[float], method: Method, seed: int
) -> dict[str, float]:
    """Hand points of the unit cube and their values to Optuna."""
    from optuna import importance as library

    distributions: dict[str, BaseDistribution] = {}
    for name, first in points[0].items():
        options = sorted({str(point[name]) for point in points})
        distributions[name] = (
            FloatDistribution(0.0, 1.0) if isinstance(first, float) else CategoricalDistribution(options)
        )
    if method == "fanova":
        evaluator: library.BaseImportanceEvaluator = library.FanovaImportanceEvaluator(n_trees=32, seed=seed)
    else:
        evaluator = library.PedAnovaImportanceEvaluator(target_quantile=0.25)
    with quiet():
        study = optuna.create_study(direction="minimize")
        study.add_trials(
            [
                create_trial(
                    state=TrialState.COMPLETE,
                    params={n: v if isinstance(v, float) else str(v) for n, v in point.items()},
                    distributions=distributions,
                    value=value,
                )
                for point, value in zip(points, values, strict=True)
            ]
        )
        shares = library.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in sorted(shares.items(), key=lambda pair: -pair[1])}


def _note(trials: int, shares: dict[str, float], spreads: dict[str, tuple[float, float]]) -> str:
    """Say how far the order holds."""
    names = list(shares)
    open_pairs = [
        f"{name} and {other}" for name, other in pairwise(names) if spreads[name][0] <= spreads[other][1]
    ]
    few = f"With {trials} trials, fewer than {_FEW}, the shares are unreliable. " if trials < _FEW else ""
    order = (
        f"Resampling the trials leaves open the order of {'; '.join(open_pairs)}."
        if open_pairs
        else "Resampling the trials does not change the order."
    )
    return few + order
