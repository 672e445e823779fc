"""The search: coarse, fine, validate."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from companion.artifacts import JSON
from companion.artifacts.digests import plain
from companion.settings import get_settings
from companion.training.config import TrainingConfig
from companion.training.tuning.fitting import Reporter, Run
from companion.training.tuning.records import (
    PHASES,
    Candidate,
    Phase,
    PhaseName,
    TrialRecord,
    TuningResult,
    Validation,
)
from companion.training.tuning.space import SearchSpace, Value
from companion.training.tuning.storage import CANDIDATE, OUTCOME, Given, finished, opened, records
from companion.training.tuning.validation import Validated, choose

__all__ = ["tune"]

_NAMES = ("default", "best", "second", "third")


def tune(
    run: Run,
    space: SearchSpace,
    *,
    storage: Path,
    base: TrainingConfig | None = None,
    coarse: Phase | None = None,
    fine: Phase | None = None,
    validation: Validation | None = None,
    higher_is_better: bool = True,
    metric: str | None = None,
    seed: int = 0,
    inputs: JSON = None,
) -> TuningResult:
    """Search for hyper-parameters in three phases, each in a study of its own.

    *Coarse*: points of a scrambled Sobol sequence over the whole space, short runs. *Fine*: the space around
    the best quarter of the coarse trials, longer runs; the first is the best coarse configuration, the others
    come from Optuna's TPE sampler [1]_. *Validate*: the best configurations and the default, each with
    several seeds (see `choose`).

    The same call goes on where an earlier one was killed. Finished trials are not run again; one that was
    running is run again from its start. A trial's values depend on the seed, its place in the phase, and the
    finished trials before it, not on who ran those or when: if `run` is deterministic, a search that was
    killed suggests the same values and ends with the same trials as one in one piece. (Only `choose` looks at
    their seconds, between configurations that it cannot tell apart otherwise.) Optuna's own numbers count the
    trials that died too, and so leave gaps.

    Parameters
    ----------
    run : callable
        From `Candidate` and `Reporter` to the value. NaN or infinite: it diverged. `Fitting` is one for
        `fit`.
    space : SearchSpace
    storage : Path
        The SQLite file; its folder must exist.
    base : TrainingConfig, optional
        The default: what the search has to beat, and the values of all that is not searched.
    coarse, fine : Phase, optional
        Default: 32 trials of 512 examples, and 16 of 2048.
    validation : Validation, optional
    higher_is_better : bool
    metric : str, optional
        What `Reporter` takes from each evaluation. Default: the first.
    seed : int
        Of the search. The runs have the seed of `base`, and those of the validation the ones after it.
    inputs : JSON
        Whatever else went in (data, model): a file with other inputs is refused.

    Returns
    -------
    TuningResult

    Raises
    ------
    ValueError
        When the space does not fit `TrainingConfig`, the file belongs to another search, or fewer than two
        coarse trials, or no fine one, came to their end. Whatever `run` raises ends the search.
    FileNotFoundError
        When the folder of the file is missing.

    References
    ----------
    .. [1] Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011.
    """
    base, validation = base or TrainingConfig(), validation or Validation()
    coarse, fine = coarse or Phase(32, examples=512), fine or Phase(16, examples=2048)
    if validation.candidates >= len(_NAMES):
        raise ValueError(f"{validation.candidates} candidates, expected at most {len(_NAMES) - 1}")
    space.check(base)
    plan: dict[str, Any] = {
        "space": {name: [type(one).__name__, asdict(one)] for name, one in space.dimensions.items()},
        "base": asdict(base),
        "coarse": asdict(coarse),
        "fine": asdict(fine),
        "validation": asdict(validation),
        "higher_is_better": higher_is_better,
        "metric": metric,
        "seed": seed,
        "inputs": inputs,
    }
    plan = {name: plain(value, name) for name, value in plan.items()}
    with opened(storage, plan, higher_is_better=higher_is_better) as studies:
        search = _Search(run, base, higher_is_better, metric)
        points = _sobol(len(space.dimensions), coarse.trials, seed)
        search.explore(studies["coarse"], "coarse", coarse, space, lambda slot: Given(space.at(points[slot])))
        best = search.ranked(studies["coarse"], "coarse", least=2)[: max(2, math.ceil(coarse.trials / 4))]
        narrow = space.around([trial.values for trial in best])

        def sampler(slot: int) -> optuna.samplers.BaseSampler:
            if slot == 0:
                return Given(best[0].values)
            return optuna.samplers.TPESampler(seed=_derived(seed, slot), n_startup_trials=5)

        search.explore(studies["fine"], "fine", fine, narrow, sampler)
        chosen = _distinct(search.ranked(studies["fine"], "fine"), space, validation.candidates)
        validated = search.validate(studies["validate"], validation, space, chosen)
        choice = choose(validated, higher_is_better=higher_is_better, level=validation.level)
        values = next(one.values for one in validated if one.name == choice.name)
        return TuningResult(
            storage,
            higher_is_better,
            tuple(record for phase in PHASES for record in records(studies[phase], phase)),
            sum(len(study.get_trials(states=(TrialState.FAIL,))) for study in studies.values()),
            validated,
            choice,
            space.applied(base, values),
            space.extras(values),
        )


class _Search:
    """Runs the trials of the phases, slot by slot."""

    def __init__(self, run: Run, base: TrainingConfig, higher_is_better: bool, metric: str | None) -> None:
        self.run, self.base, self.higher_is_better, self.metric = run, base, higher_is_better, metric

    def explore(
        self,
        study: optuna.Study,
        name: PhaseName,
        phase: Phase,
        space: SearchSpace,
        sampler: Callable[[int], optuna.samplers.BaseSampler],
    ) -> None:
        """Run the trials of a coarse or fine phase that are missing."""
        halfway = math.ceil(phase.evaluations / 2)
        study.pruner = (
            optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=halfway)
            if phase.prune
            else optuna.pruners.NopPruner()
        )
        done = finished(study)
        for slot in _progress(range(phase.trials), name):
            if slot in done:
                continue
            study.sampler = sampler(slot)  # afresh: its random state then depends on the slot alone
            trial = study.ask(space.distributions())
            config = _sized(space.applied(self.base, trial.params), phase.examples, phase.evaluations)
            candidate = Candidate(config, space.extras(trial.params), name)
            self._finish(study, trial, candidate, phase.evaluations, slot=slot, values=trial.params)

    def validate(
        self,
        study: optuna.Study,
        validation: Validation,
        space: SearchSpace,
        chosen: Sequence[Mapping[str, Value]],
    ) -> tuple[Validated, ...]:
        """Run the default and the chosen configurations with each seed, all of one seed before the next."""
        study.pruner = optuna.pruners.NopPruner()
        compared: list[dict[str, Value]] = [{}, *(dict(values) for values in chosen)]
        done = finished(study)
        for slot in _progress(range(len(compared) * validation.seeds), "validate"):
            if slot in done:
                continue
            offset, index = divmod(slot, len(compared))
            values = compared[index]
            config = replace(space.applied(self.base, values), seed=self.base.seed + 1 + offset)
            candidate = Candidate(_sized(config, validation.examples, 1), space.extras(values), "validate")
            # The default may lie outside the space: these trials have no parameters in Optuna's sense.
            trial = study.ask()
            self._finish(study, trial, candidate, 1, slot=slot, values=values, index=index)
        trials = records(study, "validate")
        worst = -math.inf if self.higher_is_better else math.inf
        return tuple(
            Validated(
                _NAMES[index],
                compared[index],
                tuple(worst if one.value is None else one.value for one in trials if one.candidate == index),
                float(np.mean([one.seconds for one in trials if one.candidate == index])),
            )
            for index in range(len(compared))
        )

    def ranked(self, study: optuna.Study, name: PhaseName, least: int = 1) -> list[TrialRecord]:
        """Return the trials of a phase that came to their end, the best first."""
        complete = [record for record in records(study, name) if record.state == "complete"]
        if len(complete) < least:
            raise ValueError(
                f"{len(complete)} of the {name} trials came to their end, expected at least {least}: give "
                "more trials, or a space with lower learning rates"
            )
        sign = -1 if self.higher_is_better else 1
        return sorted(complete, key=lambda record: (sign * (record.value or 0.0), record.slot))

    def _finish(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        candidate: Candidate,
        evaluations: int,
        *,
        slot: int,
        values: Mapping[str, Value],
        index: int | None = None,
    ) -> None:
        """Run one trial, and write it down: its state last, so that a kill before that repeats it."""
        trial.set_user_attr(
            CANDIDATE,
            {
                "slot": slot,
                "candidate": index,
                "values": dict(values),
                "config": asdict(candidate.config),
            },
        )
        reporter, start = Reporter(trial, evaluations, self.metric), time.perf_counter()
        value = float(self.run(candidate, reporter))
        seconds = time.perf_counter() - start
        diverged = not reporter.pruned and not math.isfinite(value)
        state = "pruned" if reporter.pruned else "diverged" if diverged else "complete"
        trial.set_user_attr(OUTCOME, {"state": state, "seconds": seconds})
        if state == "complete":
            study.tell(trial, value)
        else:
            study.tell(trial, state=TrialState.PRUNED)


def _sized(config: TrainingConfig, examples: int | None, evaluations: int) -> TrainingConfig:
    """Give a configuration the length of a phase."""
    if examples is None:
        return config
    steps = math.ceil(examples / config.batch_size)
    return replace(
        config,
        epochs=steps,  # every epoch has a step, so max_steps is what ends the run
        max_steps=steps,
        evaluate_every=math.ceil(steps / evaluations),
    )


def _distinct(ranked: Sequence[TrialRecord], space: SearchSpace, count: int) -> list[dict[str, Value]]:
    """Return the best configurations that differ visibly from the better ones."""
    found: list[dict[str, Value]] = []
    for trial in ranked:
        if len(found) < count and not any(space.alike(trial.values, other) for other in found):
            found.append(trial.values)
    return found


def _sobol(dimensions: int, points: int, seed: int) -> Sequence[Sequence[float]]:
    """Return the first points of a scrambled Sobol sequence; more points continue it."""
    from scipy.stats import qmc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a number of points that is no power of two
        found: list[list[float]] = qmc.Sobol(dimensions, scramble=True, rng=seed).random(points).tolist()
    return found


def _derived(seed: int, slot: int) -> int:
    return int(np.random.SeedSequence([seed, slot]).generate_state(1)[0])


def _progress(slots: range, name: str) -> tqdm[int]:
    return tqdm(slots, desc=name, unit="trial", disable=not get_settings().progress)
