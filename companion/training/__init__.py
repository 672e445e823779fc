"""Trains a model: text in, a model folder out.

`fit` is the loop. The rest looks at a run (`Monitor`, `reliability`), chooses for it (`recommend`,
`range_test`, `tune`), makes it fit (`ladder`, `distillation`) or gives its result away (`save`, `sharing`).
Importing this package does not import torch; the first use of a name that needs it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from companion.training.config import TrainingConfig
from companion.training.records import Evaluation, StepRecord, TrainingRun

if TYPE_CHECKING:
    from companion.training import distillation, monitoring, sharing
    from companion.training.calibration import (
        calibrated_ece,
        ece_interval,
        fit_temperature,
        reliability,
        reliability_diagram,
    )
    from companion.training.callbacks import Callback, Diverged, EarlyStopping, RunState
    from companion.training.checkpoints import best_checkpoint, list_checkpoints, load_weights
    from companion.training.evaluation import evaluate, mean_loss
    from companion.training.folder import save
    from companion.training.loop import fit
    from companion.training.memory import ladder, ladder_plot, measure_step
    from companion.training.monitoring import Monitor
    from companion.training.objectives import (
        CausalLanguageModelling,
        Classification,
        MaskedLanguageModelling,
        Objective,
        Regression,
    )
    from companion.training.prediction import predict_logits
    from companion.training.rate_range import range_test, range_test_plot
    from companion.training.recommendations import recommend
    from companion.training.tuning import SearchSpace, tune

_HOMES = {
    "calibration": (
        "calibrated_ece",
        "ece_interval",
        "fit_temperature",
        "reliability",
        "reliability_diagram",
    ),
    "callbacks": ("Callback", "Diverged", "EarlyStopping", "RunState"),
    "checkpoints": ("best_checkpoint", "list_checkpoints", "load_weights"),
    "evaluation": ("evaluate", "mean_loss"),
    "folder": ("save",),
    "loop": ("fit",),
    "memory": ("ladder", "ladder_plot", "measure_step"),
    "monitoring": ("Monitor",),
    "objectives": (
        "CausalLanguageModelling",
        "Classification",
        "MaskedLanguageModelling",
        "Objective",
        "Regression",
    ),
    "prediction": ("predict_logits",),
    "rate_range": ("range_test", "range_test_plot"),
    "recommendations": ("recommend",),
    "tuning": ("SearchSpace", "tune"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_PACKAGES = ("distillation", "monitoring", "sharing")

__all__ = [
    "Callback",
    "CausalLanguageModelling",
    "Classification",
    "Diverged",
    "EarlyStopping",
    "Evaluation",
    "MaskedLanguageModelling",
    "Monitor",
    "Objective",
    "Regression",
    "RunState",
    "SearchSpace",
    "StepRecord",
    "TrainingConfig",
    "TrainingRun",
    "best_checkpoint",
    "calibrated_ece",
    "distillation",
    "ece_interval",
    "evaluate",
    "fit",
    "fit_temperature",
    "ladder",
    "ladder_plot",
    "list_checkpoints",
    "load_weights",
    "mean_loss",
    "measure_step",
    "monitoring",
    "predict_logits",
    "range_test",
    "range_test_plot",
    "recommend",
    "reliability",
    "reliability_diagram",
    "save",
    "sharing",
    "tune",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME_OF:
        return getattr(import_module(f"companion.training.{_HOME_OF[name]}"), name)
    if name in _PACKAGES:
        return import_module(f"companion.training.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
