"""The exercises' checks: a learner's work goes in, a result with evidence and hints comes out.

`load` gives an `Exercise` with named steps. `Exercise.check` looks at what a learner wrote for one of them,
`Exercise.hint` says more each time, `Exercise.progress` shows what is done.
"""

from __future__ import annotations

from companion.exercises.catalogue import NAMES, load
from companion.exercises.exercise import Exercise, Step
from companion.exercises.probing import Probe
from companion.exercises.records import Evidence, Hint, Progress, StepResult

__all__ = ["NAMES", "Evidence", "Exercise", "Hint", "Probe", "Progress", "Step", "StepResult", "load"]
