"""Window after window against one reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from companion.deployment.watching.columns import Columns
from companion.deployment.watching.drift import DriftSettings, common_block, compare_windows
from companion.deployment.watching.permutation import cuts_for
from companion.deployment.watching.report import DriftReport, moment
from companion.inference.tables import table

__all__ = ["DriftHistory", "watch_windows"]


@dataclass(frozen=True)
class DriftHistory:
    """Windows of one model version in the order of time, each compared with the same reference.

    Attributes
    ----------
    windows : tuple of DriftReport
        At least one.
    step : int
        Answers from the beginning of one window to that of the next.
    """

    windows: tuple[DriftReport, ...]
    step: int

    @property
    def alarms(self) -> tuple[int, ...]:
        """Which windows are alarms; counts from 0."""
        return tuple(place for place, window in enumerate(self.windows) if window.drifted)

    @property
    def expected_false_alarms(self) -> float:
        """How many alarms there would be on average without any drift."""
        return len(self.windows) * self.windows[0].false_alarms

    @property
    def overlap(self) -> bool:
        """Whether windows share answers: their alarms then come in groups."""
        return self.step < self.windows[0].window.answers

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "step": self.step,
            "alarms": list(self.alarms),
            "expected_false_alarms": self.expected_false_alarms,
            "windows": [window.to_dict() for window in self.windows],
        }

    def text(self) -> str:
        """Write a line per window."""
        rows = [
            {
                "window": str(place + 1),
                "from (UTC)": moment(report.window.start),
                "answers": f"{report.window.answers:,}",
                "smallest p": f"{min(change.p for change in report.changes):.3g}",
                "alarm": f"ALARM: {', '.join(report.moved)}" if report.drifted else "",
            }
            for place, report in enumerate(self.windows)
        ]
        shared = " They share answers, so that their alarms come in groups." if self.overlap else ""
        return table("", rows, left=("alarm",)) + (
            f"\n{len(self.alarms)} of {len(rows)} windows are alarms; without drift "
            f"{self.expected_false_alarms:.3g} would be, on average.{shared}"
        )


def watch_windows(
    reference: Columns,
    current: Columns,
    *,
    window: int,
    step: int | None = None,
    settings: DriftSettings | None = None,
    across_versions: bool = False,
) -> DriftHistory:
    """Cut answers into windows and compare each with the reference.

    The rate of false alarms is per window: of 100 windows without drift one is an alarm on average, at the
    default rate. One that is alone among many is no news; several in a row are.

    Parameters
    ----------
    reference, current : Columns
        `current` is later, and has none of the reference's answers.
    window : int
        Answers of each.
    step : int, optional
        Answers from one window's beginning to the next one's. Default: `window`, so that none are shared.
    settings : DriftSettings, optional
    across_versions : bool
        See `compare_windows`.

    Returns
    -------
    DriftHistory
        The last window ends with the last answer; what is left over at the beginning is in none.

    Raises
    ------
    ValueError
        When the step or the window is no size, and as `compare_windows`.
    """
    step = window if step is None else step
    if window < 1 or step < 1:
        raise ValueError(f"window is {window} and step {step}, expected at least 1 of both")
    settings = settings or DriftSettings()
    settings = replace(settings, block=settings.block or common_block(reference, current))
    ends = list(range(len(current), window - 1, -step)) or [len(current)]
    cuts = None
    block = settings.block or 1
    if 0 < (size := window // block * block) <= len(current) and len(reference) >= block:
        cuts = cuts_for(
            len(reference) // block * block,
            size,
            block=block,
            false_alarms=settings.false_alarms,
            seed=settings.seed,
            permutations=settings.permutations,
        )
    reports = [
        compare_windows(
            reference,
            current.take(slice(max(0, end - window), end)),
            settings=settings,
            across_versions=across_versions,
            cuts=cuts,
        )
        for end in reversed(ends)
    ]
    return DriftHistory(tuple(reports), step)
