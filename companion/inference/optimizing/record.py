"""What an optimization found: each candidate, what it costs, how fast it is, and which one was taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from companion.inference.benchmarking.report import Benchmark, LatencyRow, MeasuredFolder, ThroughputRow
from companion.inference.quality.gate import Gate
from companion.inference.quality.record import Quality
from companion.inference.timing import Timing

__all__ = ["Aim", "Optimization", "Tried", "alone", "batched"]

Aim = Literal["latency", "throughput", "size"]

_SAME = 1e-4
"""A correlation that changes by no more is the same."""


@dataclass(frozen=True)
class Tried:
    """A candidate.

    Attributes
    ----------
    name : str
        The precision, or ``"int8-mixed"``.
    precision : str
        As for `companion.inference.export`.
    kept : tuple of str
        Matrices and tables that stay in float32, the most sensitive first.
    of : int
        How many there are, where any are kept.
    bytes : int or None
        Of its folder.
    quality : Quality or None
        None where the folder could not be made.
    gate : Gate or None
    moved_by_batch : int or None
        Of the manifest's check: texts whose answer depends on their neighbours.
    refused : str or None
        Why it was not taken into account.
    measured : MeasuredFolder or None
        Only those that were not refused are measured.
    """

    name: str
    precision: str
    kept: tuple[str, ...] = ()
    of: int = 0
    bytes: int | None = None
    quality: Quality | None = None
    gate: Gate | None = None
    moved_by_batch: int | None = None
    refused: str | None = None
    measured: MeasuredFolder | None = None

    @property
    def changed(self) -> float:
        """Share of the answers that are not the source's; for a number, by how much the metric drops."""
        if self.quality is None:
            return math.inf
        return self.quality.drop.value if self.quality.flips is None else self.quality.flips.value

    @property
    def unchanged(self) -> bool:
        """Whether no answer is different, as far as the held-out examples show."""
        return self.quality is not None and self.changed <= (_SAME if self.quality.flips is None else 0)

    def timing(self, objective: Aim) -> Timing:
        """Return the turns that count for an objective. Only of a candidate that was measured."""
        assert self.measured is not None
        return batched(self.measured).timing if objective == "throughput" else alone(self.measured).timing

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {
            "name": self.name,
            "precision": self.precision,
            "kept": list(self.kept),
            "bytes": self.bytes,
            "quality": None if self.quality is None else self.quality.to_dict(),
            "gate": None if self.gate is None else self.gate.to_dict(),
            "moved_by_batch": self.moved_by_batch,
            "refused": self.refused,
        }


def alone(found: MeasuredFolder) -> LatencyRow:
    """Return the row of single texts of all lengths."""
    return found.latency[-1]


def batched(found: MeasuredFolder) -> ThroughputRow:
    """Return the row of the largest batch."""
    return max(found.throughput, key=lambda row: row.batch_size)


@dataclass(frozen=True)
class Optimization:
    """Which candidate was taken, out of which, and on what grounds.

    Attributes
    ----------
    folder, out : str
        The source and the ONNX folder.
    objective : {"latency", "throughput", "size"}
    max_drop : float
        The budget in points.
    metric : str
        What must not drop by more: the task's metric, or without labels the agreement with the source.
    task : str
    examples : int
        Held out.
    labelled : bool
    tried : tuple of Tried
    benchmark : Benchmark or None
        The source first, then all that were not refused. None where all were.
    chosen : str or None
        The name of what is in `out` now. None where nothing was written.
    tied : tuple of str
        Those that this run could not tell from it by the objective.
    fallback : bool
        Whether no narrow candidate was left.
    notes : tuple of str
        What else the reader has to know.
    """

    folder: str
    out: str
    objective: Aim
    max_drop: float
    metric: str
    task: str
    examples: int
    labelled: bool
    tried: tuple[Tried, ...]
    benchmark: Benchmark | None
    chosen: str | None
    tied: tuple[str, ...]
    fallback: bool
    notes: tuple[str, ...]

    @property
    def winner(self) -> Tried | None:
        """The candidate that was taken."""
        return next((one for one in self.tried if one.name == self.chosen), None)

    @property
    def source(self) -> MeasuredFolder | None:
        """The source's own times."""
        return None if self.benchmark is None else self.benchmark.candidates[0]

    def explanation(self) -> str:
        """Say in plain words what was taken, what it costs, and why nothing else was."""
        from companion.inference.optimizing.text import explain

        return explain(self)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; times in seconds."""
        return {
            "folder": self.folder,
            "out": self.out,
            "objective": self.objective,
            "max_drop": self.max_drop,
            "metric": self.metric,
            "task": self.task,
            "examples": self.examples,
            "labelled": self.labelled,
            "chosen": self.chosen,
            "tied": list(self.tied),
            "fallback": self.fallback,
            "tried": [one.to_dict() for one in self.tried],
            "benchmark": None if self.benchmark is None else self.benchmark.to_dict(),
            "notes": list(self.notes),
            "explanation": self.explanation(),
        }

    def text(self) -> str:
        """Write the table and the explanation for a terminal."""
        from companion.inference.optimizing.text import report

        return report(self)
