"""Hyper-parameters: coarse, fine, validate, in an Optuna study that survives a kill.

A search decides little by itself: two configurations whose runs differ by less than their seeds do are the
same, and `tune` says so instead of naming a winner.
"""

from __future__ import annotations

from companion.training.tuning.fitting import Fitting, Reporter, Run, set_dropout
from companion.training.tuning.importances import Importance, history_plot, importance, importance_plot
from companion.training.tuning.records import Candidate, Phase, TrialRecord, TuningResult, Validation
from companion.training.tuning.search import tune
from companion.training.tuning.space import Options, Range, SearchSpace, fine_tuning_space
from companion.training.tuning.storage import load_studies
from companion.training.tuning.validation import Choice, Validated, choose

__all__ = [
    "Candidate",
    "Choice",
    "Fitting",
    "Importance",
    "Options",
    "Phase",
    "Range",
    "Reporter",
    "Run",
    "SearchSpace",
    "TrialRecord",
    "TuningResult",
    "Validated",
    "Validation",
    "choose",
    "fine_tuning_space",
    "history_plot",
    "importance",
    "importance_plot",
    "load_studies",
    "set_dropout",
    "tune",
]
