"""The plan of a search, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from companion.training.config import TrainingConfig
from companion.training.tuning.space import Value
from companion.training.tuning.validation import Choice, Validated

__all__ = ["PHASES", "Candidate", "Phase", "PhaseName", "TrialRecord", "TuningResult", "Validation"]

PhaseName = Literal["coarse", "fine", "validate"]
PHASES: tuple[PhaseName, ...] = ("coarse", "fine", "validate")


@dataclass(frozen=True)
class Phase:
    """A phase that looks for good configurations.

    Attributes
    ----------
    trials : int
        How many configurations are tried.
    examples : int, optional
        Training examples that one trial sees, repetitions included: its steps are that number over its batch
        size, so that large and small batches are compared after equal work. Default: the length of the base
        configuration.
    evaluations : int
        How often, at most, a trial is evaluated, at equal distances.
    prune : bool
        Whether a trial ends early when, from the middle of its budget on, its best value so far is worse than
        the median of the finished trials at that point [1]_.

    References
    ----------
    .. [1] Golovin et al., "Google Vizier: A Service for Black-Box Optimization", KDD 2017, section 3.2.2.
    """

    trials: int
    examples: int | None = None
    evaluations: int = 4
    prune: bool = True

    def __post_init__(self) -> None:
        """Refuse a phase in which nothing happens."""
        if self.trials < 1 or self.evaluations < 1 or (self.examples is not None and self.examples < 1):
            raise ValueError(f"{self}: expected at least 1 trial, 1 evaluation and 1 example")


@dataclass(frozen=True)
class Validation:
    """The phase that decides.

    Attributes
    ----------
    candidates : int
        How many of the best configurations are compared with the default.
    seeds : int
        Runs of each of them and of the default; all are given the same seeds, and none that was used in the
        search.
    examples : int, optional
        As in `Phase`.
    level : float
        Significance level of the whole comparison with the default.
    """

    candidates: int = 3
    seeds: int = 5
    examples: int | None = None
    level: float = 0.05

    def __post_init__(self) -> None:
        """Refuse a validation that could not tell anything."""
        if self.candidates < 1 or self.seeds < 2 or (self.examples is not None and self.examples < 1):
            raise ValueError(f"{self}: expected at least 1 candidate, 2 seeds and 1 example")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}, expected a number between 0 and 1")


@dataclass(frozen=True)
class Candidate:
    """What one run is to do.

    Attributes
    ----------
    config : TrainingConfig
        With the length that the phase prescribes, and the seed.
    extras : mapping of str to value
        What is searched besides: ``dropout``, say.
    phase : {"coarse", "fine", "validate"}
    """

    config: TrainingConfig
    extras: Mapping[str, Value]
    phase: PhaseName


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    Attributes
    ----------
    phase : {"coarse", "fine", "validate"}
    slot : int
        Its place in the phase; counts from 0 and, unlike Optuna's number, leaves interrupted trials out.
    candidate : int or None
        In the validation: 0 for the default, then the best configuration, the second best, ...
    values : dict of str to value
        What was searched.
    config : dict
        The whole `TrainingConfig`.
    state : {"complete", "pruned", "diverged"}
    value : float or None
        What the run returned; of a pruned trial its last report; None when it diverged.
    seconds : float
        Wall-clock time of the run.
    reports : dict of int to float
        Value by the part of the budget done, in units of one over `Phase.evaluations`.
    """

    phase: PhaseName
    slot: int
    candidate: int | None
    values: dict[str, Value]
    config: dict[str, object]
    state: Literal["complete", "pruned", "diverged"]
    value: float | None
    seconds: float
    reports: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TuningResult:
    """What a search found.

    Attributes
    ----------
    storage : Path
        The SQLite file with one Optuna study a phase.
    higher_is_better : bool
    trials : tuple of TrialRecord
        By phase, then by slot.
    interrupted : int
        Trials that died with their process and were tried again; not among `trials`.
    validated : tuple of Validated
        The default first.
    choice : Choice
        Which of them to take, and why.
    config : TrainingConfig
        The base configuration with the chosen values.
    extras : dict of str to value
        What is chosen besides: ``dropout``, say. Empty for the default.
    """

    storage: Path
    higher_is_better: bool
    trials: tuple[TrialRecord, ...]
    interrupted: int
    validated: tuple[Validated, ...]
    choice: Choice
    config: TrainingConfig
    extras: dict[str, Value]
