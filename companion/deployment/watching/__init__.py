"""What the server answered, written down, and whether it still looks as it did when all was well.

`LoggedAnswerer` stands around another answerer and gives each answer to a `PredictionLog`, which writes a
line without the text, in a thread of its own and never in the way of an answer. `read_log` reads the lines
back; `compare_windows` compares two windows of one model version, `watch_windows` window after window, at a
rate of false alarms that `rehearse` can check on one's own answers. `share_plot` draws it.

Writing needs neither numpy nor scipy; scipy is imported when windows are compared.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.deployment.watching.columns import Columns, columns_of_texts
    from companion.deployment.watching.dependence import block_for
    from companion.deployment.watching.drift import DriftSettings, TooFewAnswersError, compare_windows
    from companion.deployment.watching.features import TextFeatures, TokenCount, measure_text, token_counter
    from companion.deployment.watching.history import DriftHistory, watch_windows
    from companion.deployment.watching.judging import Judgement, Period, judge_versions
    from companion.deployment.watching.pictures import share_plot
    from companion.deployment.watching.power import answers_needed, detectable_shift
    from companion.deployment.watching.prediction_log import (
        LogCounts,
        LoggedAnswerer,
        LogLimits,
        PredictionLog,
    )
    from companion.deployment.watching.reading import LogContent, read_log
    from companion.deployment.watching.records import NewerSchemaError, Prediction
    from companion.deployment.watching.rehearsal import Rehearsal, lengthened, rehearse, relabelled, unsure
    from companion.deployment.watching.report import Change, DriftReport, LabelShare, Span

__all__ = [
    "Change",
    "Columns",
    "DriftHistory",
    "DriftReport",
    "DriftSettings",
    "Judgement",
    "LabelShare",
    "LogContent",
    "LogCounts",
    "LogLimits",
    "LoggedAnswerer",
    "NewerSchemaError",
    "Period",
    "Prediction",
    "PredictionLog",
    "Rehearsal",
    "Span",
    "TextFeatures",
    "TokenCount",
    "TooFewAnswersError",
    "answers_needed",
    "block_for",
    "columns_of_texts",
    "compare_windows",
    "detectable_shift",
    "judge_versions",
    "lengthened",
    "measure_text",
    "read_log",
    "rehearse",
    "relabelled",
    "share_plot",
    "token_counter",
    "unsure",
    "watch_windows",
]

_HOMES = {
    "Columns": "columns",
    "columns_of_texts": "columns",
    "block_for": "dependence",
    "DriftSettings": "drift",
    "TooFewAnswersError": "drift",
    "compare_windows": "drift",
    "TextFeatures": "features",
    "TokenCount": "features",
    "measure_text": "features",
    "token_counter": "features",
    "DriftHistory": "history",
    "watch_windows": "history",
    "Judgement": "judging",
    "Period": "judging",
    "judge_versions": "judging",
    "share_plot": "pictures",
    "answers_needed": "power",
    "detectable_shift": "power",
    "LogCounts": "prediction_log",
    "LogLimits": "prediction_log",
    "LoggedAnswerer": "prediction_log",
    "PredictionLog": "prediction_log",
    "LogContent": "reading",
    "read_log": "reading",
    "NewerSchemaError": "records",
    "Prediction": "records",
    "Rehearsal": "rehearsal",
    "lengthened": "rehearsal",
    "rehearse": "rehearsal",
    "relabelled": "rehearsal",
    "unsure": "rehearsal",
    "Change": "report",
    "DriftReport": "report",
    "LabelShare": "report",
    "Span": "report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names for completion."""
    return sorted({*globals(), *__all__})
