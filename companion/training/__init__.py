"""Fine-tunes an encoder on a task: text in, a model folder out.

Importing this package does not import torch; the first use of a name from the loop does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from companion.training.config import TrainingConfig
from companion.training.records import Evaluation, StepRecord, TrainingRun

if TYPE_CHECKING:
    from companion.training.folder import save
    from companion.training.loop import fit
    from companion.training.prediction import predict_logits

__all__ = ["Evaluation", "StepRecord", "TrainingConfig", "TrainingRun", "fit", "predict_logits", "save"]

_HOMES = {"fit": "loop", "save": "folder", "predict_logits": "prediction"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"companion.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
