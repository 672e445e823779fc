"""Alarms: what in the records of a run a person should look at.

The thresholds are rules of thumb. An alarm never changes a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from companion.training.monitoring.observations import HEALTHY_LAYER, HEALTHY_TOTAL, Alarm, Observation
from companion.training.records import StepRecord

__all__ = ["Thresholds", "check_layers", "learning_rate_zero", "loss_spike", "non_finite_gradients"]

_MAD_TO_DEVIATION = 1.4826
"""Makes the median absolute deviation of a normal distribution its standard deviation."""


@dataclass(frozen=True)
class Thresholds:
    """When to raise an alarm.

    Attributes
    ----------
    window : int
        Steps before this one that a loss is compared with.
    history : int
        Steps that must have been taken before a loss can be a spike.
    spike_score : float
        A spike is so many robust standard deviations above the median of the window ...
    spike_factor : float
        ... and so many times the largest loss in it: small batches have heavy tails ...
    spike_share : float
        ... and at least this share of the loss that the run began with: near zero every hard text stands out.
    layer_norm : tuple of two floats
        Healthy gradient norms of a layer. Below is an alarm only while the total is at least 0.1: at the end
        of a run that has learned its examples all are small.
    dead_share : float
        A layer is dead when its gradient norm is below this share of the median of the other layers' ...
    dead_update : float
        ... or its update ratio is below this. The ratio is first scaled to the peak learning rate.
    dead_observations : int
        Observations in a row in which it must be.
    collapse : float
        Normalised attention entropy below which a layer's attention has collapsed, if it has fallen to at
        most half of what it was. Some pre-trained layers are as sharp from the start.
    """

    window: int = 50
    history: int = 20
    spike_score: float = 10.0
    spike_factor: float = 1.5
    spike_share: float = 0.5
    layer_norm: tuple[float, float] = HEALTHY_LAYER
    dead_share: float = 1e-6
    dead_update: float = 1e-7
    dead_observations: int = 2
    collapse: float = 0.1


def loss_spike(steps: Sequence[StepRecord], thresholds: Thresholds) -> Alarm | None:
    """Compare the last step's loss with those before it, by median and median absolute deviation (MAD).

    Both ignore earlier spikes in the window, which would hide this one from a mean and a standard deviation.
    """
    losses = [record.loss for record in steps[-thresholds.window - 1 : -1] if math.isfinite(record.loss)]
    if len(losses) < thresholds.history:
        return None
    centre = median(losses)
    deviation = _MAD_TO_DEVIATION * median(abs(loss - centre) for loss in losses)
    start = median(record.loss for record in steps[: thresholds.history])
    limit = max(
        centre + thresholds.spike_score * deviation,
        thresholds.spike_factor * max(losses),
        thresholds.spike_share * start,
    )
    last = steps[-1]
    if last.loss <= limit:
        return None
    advice = (
        "look at this batch (labels, an odd text); if the loss stays up, lower the learning rate, lengthen "
        "the warm-up, or lower max_grad_norm"
    )
    return Alarm(last.step, "loss spike", "loss", last.loss, limit, advice)


def learning_rate_zero(record: StepRecord, total_steps: int) -> Alarm | None:
    """Find a rate of zero before the last step: the schedule is shorter than the run, or starts too low."""
    if record.learning_rate != 0 or record.step >= total_steps:
        return None
    advice = f"this step changes nothing, and {total_steps - record.step} follow; check the schedule's length"
    return Alarm(record.step, "learning rate zero", "learning rate", 0.0, 0.0, advice)


def non_finite_gradients(step: int, norms: Mapping[str, float]) -> Alarm | None:
    """Name the first layer on the gradient's way, from the output down, with NaN or infinity in it.

    Parameters
    ----------
    step : int
    norms : mapping of str to float
        Gradient norm of each layer, from the input to the output.

    Returns
    -------
    Alarm or None
        Its value is the number of layers that have them.
    """
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if not bad:
        return None
    if bad[-1] == list(norms)[-1]:
        advice = "they come from the output or the loss: is the loss finite? Lower the learning rate"
    else:
        advice = "the layers above it are finite, so its own backward pass made them: try precision 'fp32'"
    return Alarm(step, "non-finite gradients", bad[-1], float(len(bad)), 0.0, advice)


def check_layers(
    observations: Sequence[Observation], thresholds: Thresholds, *, peak_rate: float
) -> list[Alarm]:
    """Find what is wrong with single layers in the last observation, in the light of those before it.

    Parameters
    ----------
    observations : sequence of Observation
        At least one.
    thresholds : Thresholds
    peak_rate : float
        The highest learning rate of the schedule.

    Returns
    -------
    list of Alarm
    """
    alarms = []
    for layer in observations[-1].grad_norm_by_layer:
        found = _dead(observations, layer, thresholds, peak_rate) or _norm_outside(
            observations[-1], layer, thresholds
        )
        alarms += [found] if found else []
    for layer in observations[-1].attention_entropy_by_layer:
        found = _collapsed(observations, layer, thresholds)
        alarms += [found] if found else []
    return alarms


def _dead(
    observations: Sequence[Observation], layer: str, thresholds: Thresholds, peak_rate: float
) -> Alarm | None:
    recent = observations[-thresholds.dead_observations :]
    if len(recent) < thresholds.dead_observations:
        return None
    last = recent[-1]
    limits = [_starvation(seen, layer, thresholds) for seen in recent]
    norms = [seen.grad_norm_by_layer.get(layer, math.inf) for seen in recent]
    if all(norm <= limit for norm, limit in zip(norms, limits, strict=True)):
        advice = (
            "no gradient reaches it: is it detached, unused by this task, or behind a saturated function?"
        )
        return Alarm(last.step, "dead layer", layer, norms[-1], limits[-1], advice)
    ratios = [_ratio_at_peak(seen, layer, peak_rate) for seen in recent]
    if all(ratio < thresholds.dead_update for ratio in ratios):
        advice = "its weights hardly change: is it in the optimizer, and is its learning rate high enough?"
        return Alarm(last.step, "dead layer", layer, ratios[-1], thresholds.dead_update, advice)
    return None


def _starvation(seen: Observation, layer: str, thresholds: Thresholds) -> float:
    """Return the gradient norm up to which a layer gets next to nothing, compared with the others."""
    norms = seen.grad_norm_by_layer
    others = [norm for name, norm in norms.items() if name != layer and math.isfinite(norm)]
    return thresholds.dead_share * median(others) if others else 0.0


def _ratio_at_peak(seen: Observation, layer: str, peak_rate: float) -> float:
    """Return what the update ratio would have been at the peak rate; infinite where nothing can be said."""
    if seen.learning_rate == 0:
        return math.inf
    return seen.update_ratio_by_layer.get(layer, math.inf) * peak_rate / seen.learning_rate


def _norm_outside(seen: Observation, layer: str, thresholds: Thresholds) -> Alarm | None:
    norm, (low, high) = seen.grad_norm_by_layer[layer], thresholds.layer_norm
    if not math.isfinite(norm):
        return None  # that is an alarm of its own
    if norm > high:
        advice = (
            "clipping scales every layer down for the sake of this one: lower the learning rate or warm up"
        )
        return Alarm(seen.step, "gradient norm", layer, norm, high, advice)
    if norm < low and seen.grad_norm >= HEALTHY_TOTAL[0] and norm > _starvation(seen, layer, thresholds):
        advice = "it hardly learns while others do: look at the initialisation and at the norms around it"
        return Alarm(seen.step, "gradient norm", layer, norm, low, advice)
    return None


def _collapsed(observations: Sequence[Observation], layer: str, thresholds: Thresholds) -> Alarm | None:
    values = [
        seen.attention_entropy_by_layer[layer]
        for seen in observations
        if layer in seen.attention_entropy_by_layer
    ]
    if values[-1] >= thresholds.collapse or values[-1] > max(values) / 2:
        return None
    advice = (
        f"each token attends to one other, down from an entropy of {max(values):.2f}: lower the "
        "learning rate, lengthen the warm-up, or decay the query and key weights"
    )
    return Alarm(observations[-1].step, "attention collapse", layer, values[-1], thresholds.collapse, advice)
