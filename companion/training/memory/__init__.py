"""Memory of a training step: `measure_step` takes it apart, `ladder` walks the ways of needing less."""

from __future__ import annotations

from companion.training.memory.records import Ladder, Rung
from companion.training.memory.step import StepMemory, measure_step
from companion.training.memory.views import ladder_plot
from companion.training.memory.walk import ladder

__all__ = ["Ladder", "Rung", "StepMemory", "ladder", "ladder_plot", "measure_step"]
