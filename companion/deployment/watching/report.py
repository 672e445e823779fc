"""What a comparison of two windows found, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from companion.inference.intervals import LEVEL, Estimate
from companion.inference.tables import table

__all__ = ["Change", "DriftReport", "LabelShare", "Span", "moment"]


_DIFFERENCE = f"difference ({LEVEL:.0%} interval)"


@dataclass(frozen=True)
class Span:
    """A window.

    Attributes
    ----------
    answers : int
    start, end : float
        Times of the first and the last answer, in seconds since 1970; NaN for texts without a time.
    """

    answers: int
    start: float
    end: float

    def __str__(self) -> str:
        """Such as ``500 answers, 2026-11-01 10:00:00 to 2026-11-01 12:00:00 UTC``."""
        count = f"{self.answers:,} answers"
        return f"{count}, {moment(self.start)} to {moment(self.end)} UTC" if self._timed else count

    @property
    def _timed(self) -> bool:
        return math.isfinite(self.start) and math.isfinite(self.end)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        timed = {"start": self.start, "end": self.end} if self._timed else {}
        return {"answers": self.answers} | timed


@dataclass(frozen=True)
class Change:
    """One measure in both windows.

    Attributes
    ----------
    measure : str
    kind : {"input", "prediction"}
    test : {"distribution", "mean", "shares"}
        What was tested.
    shown_as : str
        What `reference` and `window` are, such as ``"mean"``.
    reference, window : float or None
        None for labels: see `DriftReport.labels`.
    difference : Estimate or None
        Window minus reference.
    distance : float
        Largest difference of the shares of answers below any value; for labels the share of answers that
        would have to change theirs. From 0 to 1.
    p : float
        Adjusted for all measures that were tested together.
    alarm : bool
        Whether `p` is at most the rate of false alarms.
    """

    measure: str
    kind: str
    test: str
    shown_as: str
    reference: float | None
    window: float | None
    difference: Estimate | None
    distance: float
    p: float
    alarm: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class LabelShare:
    """How often a label was the answer.

    Attributes
    ----------
    label : str
    reference, window : float
    difference : Estimate
        Window minus reference.
    """

    label: str
    reference: float
    window: float
    difference: Estimate


@dataclass(frozen=True)
class DriftReport:
    """A window compared with a reference.

    Attributes
    ----------
    version, reference_version : str
        Of the models that answered in the window and in the reference; the same, unless asked for otherwise.
    reference, window : Span
    changes : tuple of Change
    labels : tuple of LabelShare
    not_compared : tuple of str
        Features that are not known on both sides.
    false_alarms : float
        The share of windows without drift that give an alarm.
    block : int
        So many answers in a row were kept together.
    detectable_shift : float
        How far a label's share has to move from one half to be seen in 4 of 5 windows like this.
    permutations : int
    """

    version: str
    reference_version: str
    reference: Span
    window: Span
    changes: tuple[Change, ...]
    labels: tuple[LabelShare, ...]
    not_compared: tuple[str, ...]
    false_alarms: float
    block: int
    detectable_shift: float
    permutations: int

    @property
    def drifted(self) -> bool:
        """Whether this window is an alarm."""
        return any(change.alarm for change in self.changes)

    @property
    def moved(self) -> tuple[str, ...]:
        """The measures that are alarms, the most surprising first."""
        alarms = sorted((change for change in self.changes if change.alarm), key=lambda change: change.p)
        return tuple(change.measure for change in alarms)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        data = asdict(self)
        data |= {"reference": self.reference.to_dict(), "window": self.window.to_dict()}
        return {"drift": self.drifted, "moved": list(self.moved)} | data

    def text(self) -> str:
        """Write a table and the verdict."""
        lines = [f"model version {self.version}"]
        if self.reference_version != self.version:
            lines[0] += f", compared with version {self.reference_version}: changes can be the model's own"
        lines += [f"reference  {self.reference}", f"window     {self.window}", ""]
        lines += [table("", list(self._rows()), left=("measure", "shown", "alarm")), ""]
        if self.not_compared:
            lines.append(f"not known on both sides: {', '.join(self.not_compared)}")
        tied = f", in blocks of {self.block} answers, since neighbours are alike" if self.block > 1 else ""
        lines += [
            f"p is adjusted for all {len(self.changes)} measures ({self.permutations:,} permutations{tied}).",
            f"Of windows without drift, {_percent(self.false_alarms)} give an alarm. A label's share that "
            f"moves by {_percent(self.detectable_shift)} would be seen in 4 of 5 windows like this.",
            self.verdict(),
        ]
        return "\n".join(lines)

    def verdict(self) -> str:
        """Say in one line whether there is drift."""
        if not self.drifted:
            return "verdict: no drift"
        return f"verdict: DRIFT in {', '.join(self.moved)}"

    def _rows(self) -> Iterator[dict[str, str]]:
        for change in self.changes:
            yield {
                "measure": change.measure,
                "shown": change.shown_as if change.test != "shares" else "",
                "reference": "" if change.reference is None else f"{change.reference:.4g}",
                "window": "" if change.window is None else f"{change.window:.4g}",
                _DIFFERENCE: "" if change.difference is None else _signed(change.difference),
                "distance": f"{change.distance:.3f}",
                "p": f"{change.p:.3g}",
                "alarm": "ALARM" if change.alarm else "",
            }
            for share in self.labels if change.test == "shares" else ():
                yield {
                    "measure": f"  {share.label}",
                    "shown": "share",
                    "reference": f"{share.reference:.4g}",
                    "window": f"{share.window:.4g}",
                    _DIFFERENCE: _signed(share.difference),
                    "distance": "",
                    "p": "",
                    "alarm": "",
                }


def moment(seconds: float) -> str:
    """Write a time, in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _signed(difference: Estimate) -> str:
    return f"{difference.value:+.3g} ({difference.low:+.3g} to {difference.high:+.3g})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
