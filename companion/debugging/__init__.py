"""Finds what is wrong with a transformer, its data, its training step or its run.

`subject_from` takes what there is (a model, a factory, a model folder, a data loader, an optimizer, a
training step) and `diagnose` looks at it. Importing this package does not import torch; the first use of a
name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.debugging.adapters import subject_from, subjects_from
    from companion.debugging.doctor import diagnose, load_checks
    from companion.debugging.finding import COMPONENTS, Finding
    from companion.debugging.records import read_records
    from companion.debugging.report import Diagnosis
    from companion.debugging.subject import Subject

_HOMES = {
    "adapters": ("subject_from", "subjects_from"),
    "doctor": ("diagnose", "load_checks"),
    "finding": ("COMPONENTS", "Finding"),
    "records": ("read_records",),
    "report": ("Diagnosis",),
    "subject": ("Subject",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "COMPONENTS",
    "Diagnosis",
    "Finding",
    "Subject",
    "diagnose",
    "load_checks",
    "read_records",
    "subject_from",
    "subjects_from",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        from importlib import import_module

        return getattr(import_module(f"companion.debugging.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
