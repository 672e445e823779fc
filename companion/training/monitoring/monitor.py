"""Watches a run: what its gradients, updates and attention look like, and whether something is wrong."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import torch

from companion.training.callbacks import Callback, RunState
from companion.training.distributed import join
from companion.training.monitoring import signals
from companion.training.monitoring.attention import entropy_by_layer
from companion.training.monitoring.health import (
    Thresholds,
    check_layers,
    learning_rate_zero,
    loss_spike,
    non_finite_gradients,
)
from companion.training.monitoring.observations import Alarm, Observation
from companion.training.monitoring.writers import JsonlWriter, TensorBoardWriter, Writer
from companion.training.records import StepRecord

__all__ = ["Monitor"]

_log = getLogger("companion.training")


@dataclass(frozen=True)
class _Pending:
    """What is known of a step before its weights change."""

    norms: dict[str, float]
    before: dict[str, list[torch.Tensor]]


class Monitor(Callback):
    """Observes a run without touching it: weights and random states are those of a run without it.

    Step 1 and every `every`-th step are observed. That takes an extra forward pass over a few rows, and for
    the duration of the step a copy of the weights. On all other steps the loss and the learning rate are
    checked, and the gradients of the vectors for NaN. Under ``torchrun`` give it to every process: all
    measure together, the first one writes, and attention is that of its own rows.

    Parameters
    ----------
    folder : Path or None
        Where ``monitor.jsonl`` and the event files in ``tensorboard`` are written; one folder per run. A
        resumed run goes on in it, a run from the start empties it. None writes nothing.
    every : int
        Steps between observations.
    jsonl, tensorboard : bool
        What is written.
    attention_rows : int
        Rows of the batch for the attention entropy; 0 leaves it out.
    thresholds : Thresholds, optional
        When to raise alarms.

    Attributes
    ----------
    observations : list of Observation
        Of the whole run; after resuming, those in the folder included.
    alarms : list of Alarm
        The first one of each kind at each place. They are also written to the folder and logged as warnings
        to ``companion.training``.
    seconds : float
        What the monitor took, its writing included.

    Raises
    ------
    ValueError
        When `every` is below 1 or `attention_rows` below 0; when the run starts, if the folder is a file or
        holds another program's ``monitor.jsonl``.
    OSError
        During the run, when the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        every: int = 100,
        jsonl: bool = True,
        tensorboard: bool = True,
        attention_rows: int = 8,
        thresholds: Thresholds | None = None,
    ) -> None:
        if every < 1 or attention_rows < 0:
            raise ValueError(
                f"every is {every} and attention_rows {attention_rows}: expected at least 1 and at least 0"
            )
        self.folder, self.every = folder, every
        self._kinds: list[type[JsonlWriter] | type[TensorBoardWriter]] = [
            *([JsonlWriter] if jsonl and folder else []),
            *([TensorBoardWriter] if tensorboard and folder else []),
        ]
        self.thresholds = thresholds or Thresholds()
        self._attention_rows = attention_rows
        self._clear()

    def _clear(self) -> None:
        self.observations: list[Observation] = []
        self.alarms: list[Alarm] = []
        self.seconds = self._told = 0.0
        self._writers: list[Writer] = []
        self._layers: signals.Layers = {}
        self._pending: _Pending | None = None
        self._rows = self._attention_rows

    def on_start(self, state: RunState) -> None:
        """Open the files; of a resumed run, read what they say up to here."""
        self._clear()
        with self._timed():
            self._layers = signals.parameters_by_layer(state.model)
            if self.folder is None or not join().is_first:
                return
            for kind in self._kinds:
                writer = kind(self.folder, state.step)
                self._writers.append(writer)
                if isinstance(writer, JsonlWriter):
                    self.observations += writer.earlier.observations
                    self.alarms += writer.earlier.alarms

    def on_gradients(self, state: RunState) -> None:
        """Measure the gradients and copy the weights, if this step is observed."""
        with self._timed():
            step = state.step + 1
            due = step == 1 or step % self.every == 0
            finite = signals.gradients_are_finite(self._layers)
            if finite and not due:
                return
            norms = signals.gradient_norms(self._layers)
            # With fp16 some steps overflow until the scaler has found its scale; at 1 it has nowhere to go.
            if not state.scaler.is_enabled() or state.scaler.get_scale() <= 1:
                self._raise(non_finite_gradients(step, norms))
            if due:
                self._pending = _Pending(norms, signals.copy_weights(self._layers))

    def on_step(self, state: RunState, record: StepRecord) -> None:
        """Check the loss and the rate; complete the observation, if this step is observed."""
        with self._timed():
            self._raise(loss_spike(state.steps, self.thresholds))
            self._raise(learning_rate_zero(record, state.total_steps))
            pending, self._pending = self._pending, None
            if pending is None:
                return
            ratios = signals.update_ratios(pending.before, self._layers)
            entropies = self._entropies(state)
            spent = self._elapsed()
            observation = Observation(
                record.step,
                record.loss,
                record.learning_rate,
                record.grad_norm,
                pending.norms,
                ratios,
                entropies,
                record.examples_per_second,
                signals.memory_in_use(state.device),
                spent - self._told,
            )
            self._told = spent
            self.observations.append(observation)
            for writer in self._writers:
                writer.write(observation)
            for alarm in check_layers(
                self.observations, self.thresholds, peak_rate=state.config.learning_rate
            ):
                self._raise(alarm)

    def on_end(self, state: RunState) -> None:
        """Close the files."""
        with self._timed():
            for writer in self._writers:
                writer.close()
            self._writers, self._layers = [], {}

    def _entropies(self, state: RunState) -> dict[str, float]:
        if self._rows == 0:
            return {}
        try:
            found, problem = entropy_by_layer(state.model, state.inputs, rows=self._rows), "it returns none"
        except (TypeError, ValueError) as error:
            found, problem = None, str(error)
        if found is None:
            self._rows = 0  # said once, and not tried again
            name = type(state.model).__name__
            _log.warning("no attention entropy: %s gives no attention weights (%s)", name, problem)
        return found or {}

    def _raise(self, alarm: Alarm | None) -> None:
        if alarm is None or any((a.kind, a.where) == (alarm.kind, alarm.where) for a in self.alarms):
            return
        self.alarms.append(alarm)
        if join().is_first:
            _log.warning("%s", alarm)
        for writer in self._writers:
            writer.write(alarm)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = self._elapsed()
            self._since = math.inf

    def _elapsed(self) -> float:
        """Return the seconds so far, those of the call under way included."""
        return self.seconds + max(0.0, time.perf_counter() - self._since)
