"""What a folder states about its answers: the record of a release gate, and the gate's three outcomes.

Plain numbers, read and checked without numpy: the server reads manifests, too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from companion.inference.intervals import Estimate
from companion.inference.quality.gate import Gate, judge_drop

__all__ = ["FEW", "Calibration", "ClassQuality", "Quality", "percents", "points"]

FEW = 30
"""Examples below which a class is said to have too few to speak of."""

Method = Literal["Tango score interval", "paired bootstrap"]


@dataclass(frozen=True)
class ClassQuality:
    """The examples of one true class.

    Attributes
    ----------
    label : str
    examples : int
    reference, candidate : float or None
        Share that each gets right. None without examples.
    drop : Estimate or None
        Of the share that the reference gets right minus the candidate's.
    flips : Estimate or None
        Share whose most likely label changed.
    """

    label: str
    examples: int
    reference: float | None
    candidate: float | None
    drop: Estimate | None
    flips: Estimate | None

    @property
    def too_few(self) -> bool:
        """Whether there are fewer than `FEW` examples: the intervals say little, and are wide."""
        return self.examples < FEW


@dataclass(frozen=True)
class Calibration:
    """Whether the candidate's confidence can be believed as far as the reference's.

    Attributes
    ----------
    ece_reference, ece_candidate : float
        Expected calibration error in 15 bins, 0 to 1.
    brier_reference, brier_candidate : float
        0 to 2; lower is better.
    """

    ece_reference: float
    ece_candidate: float
    brier_reference: float
    brier_candidate: float


@dataclass(frozen=True)
class Quality:
    """A candidate compared with its reference on the same labelled examples.

    Attributes
    ----------
    task : str
    metric : {"accuracy", "matthews", "f1", "pearson"}
        1 is best.
    examples : int
    level : float
        Confidence level of all intervals.
    reference, candidate : float
        The metric of each.
    drop : Estimate
        The reference's metric minus the candidate's: above 0 the candidate is worse.
    method : {"Tango score interval", "paired bootstrap"}
        How the interval of `drop` was made.
    resamples, seed : int or None
        Of the bootstrap.
    only_reference_right, only_candidate_right : int or None
        Examples that only one of the two gets right. None for a regression.
    flips : Estimate or None
        Share of the examples whose most likely label changed, with the exact interval of Clopper and Pearson.
        None for a regression.
    classes : tuple of ClassQuality
        In the order of the labels; empty for a regression.
    calibration : Calibration or None
        None for a regression.
    """

    task: str
    metric: str
    examples: int
    level: float
    reference: float
    candidate: float
    drop: Estimate
    method: Method
    resamples: int | None
    seed: int | None
    only_reference_right: int | None
    only_candidate_right: int | None
    flips: Estimate | None
    classes: tuple[ClassQuality, ...]
    calibration: Calibration | None

    def passes(self, max_drop: float = 0.5, *, called: str | None = None) -> Gate:
        """Judge the drop: it passes only when the bad end of its interval is within the budget.

        Parameters
        ----------
        max_drop : float
            Points (hundredths of the metric) that the candidate may be worse.
        called : str, optional
            What to call that which drops. Default: the metric.

        Returns
        -------
        Gate
            True where it passes.

        Raises
        ------
        ValueError
            When `max_drop` is negative or no number.
        """
        pairs = None
        if self.method == "Tango score interval":
            assert self.only_reference_right is not None and self.only_candidate_right is not None
            pairs = (self.only_reference_right, self.only_candidate_right)
        return judge_drop(
            self.drop,
            metric=called or self.metric,
            examples=self.examples,
            max_drop=max_drop,
            level=self.level,
            disagreements=pairs,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold: the attributes by their names."""
        return asdict(self) | {"classes": [asdict(item) for item in self.classes]}

    def text(self) -> str:
        """Write the record for a terminal."""
        lines = [
            f"{self.task}, {self.examples} examples, intervals of {self.level:.0%}",
            f"{self.metric:12} {self.reference:.4f} reference, {self.candidate:.4f} candidate",
            f"{'drop':12} {points(self.drop)} points ({self.method})",
        ]
        if self.flips is not None:
            lines.append(f"{'flips':12} {percents(self.flips)} % of the labels")
        if self.calibration is not None:
            found = self.calibration
            lines.append(
                f"{'calibration':12} ECE {found.ece_reference:.4f} to {found.ece_candidate:.4f}, "
                f"Brier {found.brier_reference:.4f} to {found.brier_candidate:.4f}"
            )
        return "\n".join(lines + self._class_lines())

    def _class_lines(self) -> list[str]:
        if not self.classes:
            return []
        width = max(len(item.label) for item in self.classes) + 2
        head = f"{'class':{width}} {'examples':>8}  {'right %':>15}  {'drop, points':>22}  {'flips, %':>20}"
        return [head, *(_class_line(item, width) for item in self.classes)]


def _class_line(item: ClassQuality, width: int) -> str:
    start = f"{item.label:{width}} {item.examples:8}"
    if item.reference is None or item.candidate is None or item.drop is None or item.flips is None:
        return f"{start}  no examples"
    right = f"{100 * item.reference:.2f} to {100 * item.candidate:.2f}"
    note = f"  fewer than {FEW} examples" if item.too_few else ""
    return f"{start}  {right:>15}  {points(item.drop):>22}  {percents(item.flips):>20}{note}"


def points(found: Estimate) -> str:
    """Write a difference of shares in points, with its interval."""
    return f"{100 * found.value:+.2f} ({100 * found.low:+.2f} to {100 * found.high:+.2f})"


def percents(found: Estimate) -> str:
    """Write a share in per cent, with its interval."""
    return f"{100 * found.value:.2f} ({100 * found.low:.2f} to {100 * found.high:.2f})"
