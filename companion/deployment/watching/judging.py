"""Chooses a reference and windows out of logs, version by version, and judges each version on its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from companion.deployment.watching.columns import Columns
from companion.deployment.watching.drift import DriftSettings, TooFewAnswersError
from companion.deployment.watching.history import DriftHistory, watch_windows

__all__ = ["Judgement", "Period", "judge_versions"]

_WINDOW = 500
_TIMES = 4
"""Without a choice the reference is the first answers: so many times a window of them."""


@dataclass(frozen=True)
class Period:
    """A stretch of time.

    Attributes
    ----------
    start, end : float or None
        Seconds since 1970; `end` itself is outside. None where it is open.
    """

    start: float | None
    end: float | None


@dataclass(frozen=True)
class Judgement:
    """What there is to say about a model version.

    Attributes
    ----------
    version : str
    history : DriftHistory or None
        Its last window is the newest. None where the answers are too few.
    reason : str or None
        Why there is none.
    """

    version: str
    history: DriftHistory | None
    reason: str | None = None

    @property
    def drifted(self) -> bool:
        """Whether the newest window is an alarm."""
        return self.history is not None and self.history.windows[-1].drifted

    def to_dict(self, *, whole: bool) -> dict[str, Any]:
        """Return what JSON can hold: the newest window, or all of them."""
        found: dict[str, Any] = {"version": self.version, "drift": self.drifted}
        if self.history is None:
            return found | {"judged": False, "reason": self.reason}
        newest = self.history.windows[-1].to_dict()
        return (
            found
            | {"judged": True, "newest": newest}
            | ({"history": self.history.to_dict()} if whole else {})
        )


def judge_versions(
    log: Mapping[str, Columns],
    reference: Mapping[str, Columns] | Period | None = None,
    *,
    version: str | None = None,
    reference_version: str | None = None,
    window: int | None = None,
    step: int | None = None,
    whole: bool = False,
    settings: DriftSettings | None = None,
) -> tuple[Judgement, ...]:
    """Judge the newest answers of every model version in a log, each against answers of its own.

    Parameters
    ----------
    log : mapping of str to Columns
        By version, as `read_log` gives it.
    reference : mapping of str to Columns, or Period, optional
        Another log, or a stretch of this one. Default: the first answers of each version, four times as many
        as a window has, or what there is before the window.
    version : str, optional
        Judge this one alone.
    reference_version : str, optional
        Take the reference from this version instead: what changed may then be the model's doing.
    window : int, optional
        Answers in a window. Default: 500, or a third of what there is if that is less.
    step : int, optional
        As for `watch_windows`.
    whole : bool
        Judge all windows after the reference, and not only the newest.
    settings : DriftSettings, optional

    Returns
    -------
    tuple of Judgement

    Raises
    ------
    TooFewAnswersError
        When no version has enough answers.
    ValueError
        When a version is not there, or has no reference.
    """
    if window is not None and window < 1:
        raise ValueError(f"the window is {window} answers, expected at least 1")
    _check_named(version, log, "the log")
    if isinstance(reference, Mapping):
        _check_named(reference_version, reference, "the reference")
    else:
        _check_named(reference_version, log, "the log")
    found = []
    for name in [version] if version is not None else log:
        before, after = _sides(log, reference, name, reference_version or name, window)
        size = min(len(after), window or _WINDOW)
        try:
            history = watch_windows(
                before,
                after if whole else after.take(slice(len(after) - size, None)),
                window=window or max(1, size),
                step=step,
                settings=settings,
                across_versions=reference_version is not None,
            )
        except TooFewAnswersError as error:
            found.append(Judgement(name, None, str(error)))
        else:
            found.append(Judgement(name, history))
    if all(judgement.history is None for judgement in found):
        reasons = "; ".join(f"version {judgement.version}: {judgement.reason}" for judgement in found)
        raise TooFewAnswersError(reasons, None)
    return tuple(found)


def _sides(
    log: Mapping[str, Columns],
    reference: Mapping[str, Columns] | Period | None,
    version: str,
    reference_version: str,
    window: int | None,
) -> tuple[Columns, Columns]:
    """Return the reference and the answers after it, from which windows are cut."""
    answers = log[version]
    if isinstance(reference, Mapping):
        if reference_version not in reference:
            raise ValueError(
                f"the reference has no answers of model version {version}, only of {_listed(reference)}: a "
                "change could be the model's. Take a reference of that version, or name the other one with "
                "--reference-version to compare versions"
            )
        return reference[reference_version], answers
    source = log[reference_version]
    if isinstance(reference, Period):
        inside = source.between(reference.start, reference.end)
        if not inside.any():
            raise ValueError(
                f"no answer of model version {reference_version} lies in the time of the reference: expected "
                "some; give another FROM..TO, or choose a version with --version"
            )
        last = source.times[np.flatnonzero(inside)[-1]]
        return source.take(inside), answers.take(
            ~answers.between(reference.start, reference.end) & (answers.times >= last)
        )
    if reference_version != version:
        return source, answers
    size = window or min(_WINDOW, len(answers) // 3)
    first = min(_TIMES * size, max(0, len(answers) - size))
    return answers.take(slice(0, first)), answers.take(slice(first, None))


def _check_named(version: str | None, log: Mapping[str, Columns], where: str) -> None:
    if version is not None and version not in log:
        raise ValueError(f"{where} has no answers of model version {version}; it has those of {_listed(log)}")


def _listed(log: Mapping[str, Columns]) -> str:
    return ", ".join(f"{name} ({len(columns):,})" for name, columns in log.items())
