"""The learning-rate range test: one short run with a rising rate shows which rates a model can bear."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from companion import plots
from companion.data import Example
from companion.training.callbacks import Callback, Diverged, RunState
from companion.training.config import TrainingConfig
from companion.training.loop import fit
from companion.training.objectives import Objective
from companion.training.records import StepRecord

__all__ = ["RangeTest", "range_test", "range_test_plot"]

_EXPLODED = 4.0
_FEWEST_STEPS = 10


@dataclass(frozen=True)
class RangeTest:
    """What a range test saw, one entry per step.

    Attributes
    ----------
    rates : tuple of float
        Shape ``(steps,)``: the learning rate each step was taken with, rising.
    losses : tuple of float
        Shape ``(steps,)``: the loss of each step's batch, in the objective's unit, before that step changed
        the weights. What a rate does shows in the next entry.
    smoothed : tuple of float
        Shape ``(steps,)``: the running mean of `losses`, corrected for its start at zero.
    diverged_at : float or None
        The rate with which the test ended: the smoothed loss had passed four times its lowest value, or was
        no longer finite. None when the loss bore all rates.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged_at: float | None

    @property
    def lowest(self) -> int:
        """Index of the lowest smoothed loss."""
        return int(np.argmin(self.smoothed))

    @property
    def tenth_of_minimum(self) -> float | None:
        """A tenth of the rate at which the smoothed loss is lowest.

        None when the lowest loss is the first: then nothing was learned at any rate.
        """
        return self.rates[self.lowest] / 10 if self.lowest else None

    @property
    def steepest(self) -> float | None:
        """The rate at which the smoothed loss falls fastest over the logarithm of the rate.

        Sought before the lowest loss, and not in the first tenth of the test, where the running mean is that
        of a few batches. None when there is no such place.
        """
        first, last = max(1, len(self.rates) // 10), self.lowest
        if last - first < 2:
            return None
        slopes = np.gradient(np.array(self.smoothed), np.log10(np.array(self.rates)))[first:last]
        best = int(np.argmin(slopes))
        return self.rates[first + best] if slopes[best] < 0 else None


def range_test(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example] | Iterable[Example],
    *,
    config: TrainingConfig | None = None,
    objective: Objective | None = None,
    lowest: float = 1e-7,
    highest: float = 1.0,
    steps: int = 100,
    smoothing: float = 0.9,
) -> RangeTest:
    """Raise the learning rate exponentially over one run of `fit` on a copy of the model [1]_.

    The steps are those of `companion.training.fit`: the same batches, objective, optimizer and clipping. Only
    the rate is another one. The running mean follows the loss about ``1 / (1 - smoothing)`` steps late, so
    both suggestions lean towards high rates.

    Parameters
    ----------
    model : PreTrainedModel
        Left as it is, to the bit.
    tokenizer : PreTrainedTokenizerBase
    train : sequence or iterable of Example
        Read again from the start when `steps` batches are more than it holds.
    config : TrainingConfig, optional
        Its length, rate, schedule, warm-up and evaluations do not count here; everything else does.
    objective : Objective, optional
        As in `fit`.
    lowest, highest : float
        The rates of the first and the last step.
    steps : int
        Optimizer steps, at least 10.
    smoothing : float
        Share of the old value in the running mean of the loss, from 0 up to, not including, 1.

    Returns
    -------
    RangeTest

    Raises
    ------
    ValueError
        When an argument cannot work, the loss is not finite at the very first step, or as in `fit`.

    References
    ----------
    .. [1] Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
    """
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"the rates go from {lowest} to {highest}: expected 0 < lowest < highest, finite")
    if steps < _FEWEST_STEPS or not 0 <= smoothing < 1:
        raise ValueError(
            f"steps is {steps} and smoothing {smoothing}: expected at least {_FEWEST_STEPS} steps, and a "
            "smoothing from 0 up to, not including, 1"
        )
    sweep = _Sweep(np.geomspace(lowest, highest, steps).tolist(), smoothing)
    short = replace(
        config or TrainingConfig(),
        learning_rate=lowest,
        schedule="constant",
        warmup=0,
        epochs=steps,  # every epoch has a step, so max_steps is what ends the run
        max_steps=steps,
        evaluate_every=None,
        checkpoint_every=None,
    )
    try:
        fit(copy.deepcopy(model), tokenizer, train, config=short, objective=objective, callbacks=[sweep])
    except Diverged:
        if not sweep.losses:
            raise
        sweep.diverged_at = sweep.rates[len(sweep.losses)]
    done = len(sweep.losses)
    return RangeTest(tuple(sweep.rates[:done]), tuple(sweep.losses), tuple(sweep.smoothed), sweep.diverged_at)


class _Sweep(Callback):
    """Sets the rate of each step, keeps the losses, and ends the run when they explode."""

    def __init__(self, rates: Sequence[float], smoothing: float) -> None:
        self.rates, self.losses, self.smoothed = list(rates), list[float](), list[float]()
        self.diverged_at: float | None = None
        self._smoothing, self._mean = smoothing, 0.0

    def on_gradients(self, state: RunState) -> None:
        """Replace what the schedule set after the last step: the optimizer reads its rate after this call."""
        for group in state.optimizer.param_groups:
            rate = self.rates[state.step]
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def on_step(self, state: RunState, record: StepRecord) -> None:
        """Average the loss of the step, and look whether it exploded."""
        if not math.isfinite(record.loss):  # fp16 lets such a step pass: its scaler skips it
            self.diverged_at, state.stop = self.rates[record.step - 1], True
            return
        self._mean = self._smoothing * self._mean + (1 - self._smoothing) * record.loss
        self.losses.append(record.loss)
        self.smoothed.append(self._mean / (1 - self._smoothing ** len(self.losses)))
        if self.smoothed[-1] > _EXPLODED * min(self.smoothed):
            self.diverged_at, state.stop = self.rates[record.step - 1], True


def range_test_plot(test: RangeTest, *, alt: str | None = None) -> plots.Plot:
    """Draw the loss over the learning rate, with both suggestions.

    Parameters
    ----------
    test : RangeTest
    alt : str, optional
        The finding in words; by default it is written from the numbers.

    Returns
    -------
    Plot
    """
    palette = plots.PALETTE
    with plots.style():
        figure, axes = plots.figure()
        axes.plot(test.rates, test.losses, color=palette.neutral, linewidth=0.9, label="loss of the batch")
        axes.plot(test.rates, test.smoothed, color=palette.series[0], label="running mean")
        marks = (("steepest descent", test.steepest), ("a tenth of the lowest", test.tenth_of_minimum))
        for colour, (name, rate) in zip(palette.series[1:], marks, strict=False):
            if rate is not None:
                axes.axvline(rate, color=colour, linestyle="--", label=f"{name}: {rate:.1e}")
        # The last losses of a test that diverged would press everything else to the floor.
        first, low = test.smoothed[0], min(test.losses)
        axes.set_ylim(low - 0.1 * max(first - low, 0.1 * abs(first)), 1.5 * max(first, max(test.losses[:5])))
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        axes.legend(loc="lower left", fontsize=8)
        return plots.show(figure, alt=alt if alt is not None else _in_words(test))


def _in_words(test: RangeTest) -> str:
    """Say what a range test shows."""
    bottom = test.lowest
    if test.tenth_of_minimum is None:
        found = f"The smoothed loss never falls below its first value, {test.smoothed[0]:.3f}"
    else:
        found = (
            f"The smoothed loss goes from {test.smoothed[0]:.3f} down to {test.smoothed[bottom]:.3f} at a "
            f"rate of {test.rates[bottom]:.1e}; a tenth of that is {test.tenth_of_minimum:.1e}"
        )
        if test.steepest is not None:
            found += f", and it falls fastest at {test.steepest:.1e}"
    ending = (
        f"it explodes at {test.diverged_at:.1e}"
        if test.diverged_at is not None
        else f"it does not explode up to {test.rates[-1]:.1e}"
    )
    return f"Training loss over a learning rate rising from {test.rates[0]:.1e}. {found}; {ending}."
