"""What a walk of the out-of-memory ladder leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from companion.training.memory.step import StepMemory

__all__ = ["MIB", "Ladder", "Rung"]

MIB = 2**20
"""Bytes of a mebibyte, the unit of everything shown."""


@dataclass(frozen=True)
class Rung:
    """One rung: a setting, and what a training step needed with it.

    Attributes
    ----------
    name : str
    length : int
        Texts are cut to this many tokens.
    precision : {"fp32", "bf16"}
    activation_checkpointing : bool
    micro_batches : int
        Parts that the batch is cut into; their gradients add up.
    processes : int
        Processes that share the model's states.
    gives_up : str
        What is paid apart from time.
    tokens_cut, texts_cut : float
        Share of all tokens that is cut off, and share of the texts that loses some, 0 to 1.
    memory : StepMemory or None
        None where nothing was measured: out of memory, or computed.
    peak_bytes : int or None
        Peak of the step; for several processes the least that each needs, computed. None: out of memory.
    below : Rung or None
        The rung that this one was built on.
    """

    name: str
    length: int
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
    micro_batches: int = 1
    processes: int = 1
    gives_up: str = ""
    tokens_cut: float = 0.0
    texts_cut: float = 0.0
    memory: StepMemory | None = None
    peak_bytes: int | None = None
    below: Rung | None = field(default=None, repr=False)

    @property
    def measured(self) -> bool:
        """Whether `peak_bytes` was measured."""
        return self.memory is not None

    def fits(self, budget_bytes: int | None) -> bool:
        """Tell whether the measured peak is within a budget; what was not measured never fits."""
        return budget_bytes is not None and self.memory is not None and self.memory.peak_bytes <= budget_bytes

    def saved(self, other: Rung | None) -> float | None:
        """Return the share of another rung's peak that this one saves, negative if it needs more."""
        if other is None or other.peak_bytes is None or self.peak_bytes is None:
            return None
        return 1 - self.peak_bytes / other.peak_bytes

    def activations_saved(self, other: Rung | None) -> float | None:
        """Return the share of another rung's activations that this one saves."""
        if other is None or other.memory is None or self.memory is None:
            return None
        return 1 - self.memory.activation_bytes / other.memory.activation_bytes

    def slowdown(self, other: Rung | None) -> float | None:
        """Return how many times as long a step takes as on another rung."""
        if other is None or other.memory is None or self.memory is None:
            return None
        return self.memory.seconds / other.memory.seconds


@dataclass(frozen=True, repr=False)
class Ladder:
    """The rungs that were walked; draws itself as a table in a notebook.

    Attributes
    ----------
    rungs : tuple of Rung
        In the order of the walk.
    batch_size : int
    budget_bytes : int or None
    model : str
        The model's class.
    device : str
    """

    rungs: tuple[Rung, ...]
    batch_size: int
    budget_bytes: int | None
    model: str
    device: str

    @property
    def fitting(self) -> Rung | None:
        """The first rung whose measured peak is within the budget."""
        return next((rung for rung in self.rungs if rung.fits(self.budget_bytes)), None)

    @property
    def verdict(self) -> str:
        """What came of the walk, in words."""
        measured = [rung for rung in self.rungs if rung.peak_bytes is not None and rung.measured]
        if not measured:
            return "Every rung ran out of memory."
        lowest = min(measured, key=lambda rung: rung.peak_bytes or 0)
        lowest_need = f"“{lowest.name}”, needs {_mib(lowest.peak_bytes)} MiB"
        if self.budget_bytes is None:
            return f"No budget was given. The lowest measured rung, {lowest_need}."
        budget = f"{self.budget_bytes / MIB:,.1f} MiB"
        if (rung := self.fitting) is not None:
            need = _mib(rung.peak_bytes)
            return f"“{rung.name}” is the first rung that fits in {budget}: it needs {need} MiB."
        says = f"No measured rung fits in {budget}: the lowest, {lowest_need}."
        last = self.rungs[-1]
        if last.processes == 1 or last.peak_bytes is None:
            return says
        what = "may be enough" if last.peak_bytes <= self.budget_bytes else "are not enough either"
        return (
            f"{says} {last.processes} processes {what}: by arithmetic each needs at least "
            f"{_mib(last.peak_bytes)} MiB, which was not measured."
        )

    def __str__(self) -> str:
        """Write the table as text."""
        from companion.training.memory.views import as_text

        return as_text(self)

    def __repr__(self) -> str:
        """Write the table as text."""
        return str(self)

    def _repr_html_(self) -> str:
        from companion.training.memory.views import as_html

        return as_html(self)


def _mib(nbytes: int | None) -> str:
    return "–" if nbytes is None else f"{nbytes / MIB:,.1f}"
