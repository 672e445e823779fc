"""A server under load: how many requests a second it answers, how fast, and what it does with too many.

`loadtest` sends by a `LoadPlan`: a closed loop of users, a constant rate by a timetable, or rates that rise
until the server no longer follows. Locust sends, in a process of its own; the latency of an open loop counts
from when a request was due, and the report says when the generator, not the server, was the limit. `witness`
asks wrk the same question. `write_report` writes a page with plots.

Each name is imported when it is first used. `worker` is run, never imported: locust patches its process.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.deployment.loadtest.arriving import ArrivalKind, timetable
    from companion.deployment.loadtest.asking import Endpoint, Outcome
    from companion.deployment.loadtest.page import write_report
    from companion.deployment.loadtest.pictures import distribution_plot, ramp_plot, time_plot
    from companion.deployment.loadtest.plan import LoadMode, LoadPlan, Ramp
    from companion.deployment.loadtest.report import (
        GeneratorUse,
        Knee,
        LoadCounts,
        LoadReport,
        LoadSecond,
        LoadStep,
        Patience,
        Trouble,
    )
    from companion.deployment.loadtest.running import LoadProgress, load_texts, loadtest
    from companion.deployment.loadtest.wrk import WrkReport, witness

__all__ = [
    "ArrivalKind",
    "Endpoint",
    "GeneratorUse",
    "Knee",
    "LoadCounts",
    "LoadMode",
    "LoadPlan",
    "LoadProgress",
    "LoadReport",
    "LoadSecond",
    "LoadStep",
    "Outcome",
    "Patience",
    "Ramp",
    "Trouble",
    "WrkReport",
    "distribution_plot",
    "load_texts",
    "loadtest",
    "ramp_plot",
    "time_plot",
    "timetable",
    "witness",
    "write_report",
]

_HOMES = {
    "ArrivalKind": "arriving",
    "timetable": "arriving",
    "Endpoint": "asking",
    "Outcome": "asking",
    "write_report": "page",
    "distribution_plot": "pictures",
    "ramp_plot": "pictures",
    "time_plot": "pictures",
    "LoadMode": "plan",
    "LoadPlan": "plan",
    "Ramp": "plan",
    "GeneratorUse": "report",
    "Knee": "report",
    "LoadCounts": "report",
    "LoadReport": "report",
    "LoadSecond": "report",
    "LoadStep": "report",
    "Patience": "report",
    "Trouble": "report",
    "LoadProgress": "running",
    "load_texts": "running",
    "loadtest": "running",
    "WrkReport": "wrk",
    "witness": "wrk",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names for completion."""
    return sorted({*globals(), *__all__})
