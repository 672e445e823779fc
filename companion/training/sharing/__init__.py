"""From a trained model to a hub repository: report, model card, folder, checks, upload.

Nothing is sent anywhere but by `upload`, and by that only when it is told so.
"""

from __future__ import annotations

from companion.training.sharing.cards import model_card
from companion.training.sharing.checks import validate
from companion.training.sharing.files import Problem
from companion.training.sharing.gathering import report
from companion.training.sharing.hub import prepare, upload
from companion.training.sharing.reports import Measured, TrainingReport, read_report, write_report

__all__ = [
    "Measured",
    "Problem",
    "TrainingReport",
    "model_card",
    "prepare",
    "read_report",
    "report",
    "upload",
    "validate",
    "write_report",
]
