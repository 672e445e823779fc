"""Settings for a run, from the situation that it starts in, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from companion.training.config import OptimizerName, ScheduleName, TrainingConfig
from companion.training.recommendations.batches import Split, default_batch, split
from companion.training.recommendations.durations import (
    FEW_EXAMPLES,
    choose_epochs,
    choose_records,
    choose_warmup,
)
from companion.training.recommendations.rates import (
    LARGE_DECODER,
    Kind,
    RateRange,
    learning_rate_range,
    written,
)
from companion.training.recommendations.scaling import lamb_rate, linear_scaling, square_root_scaling

__all__ = ["Recommendation", "recommend"]

# Beyond this batch the recipes before LAMB did not do well in pre-training BERT (You et al. 2020).
_LAMB_ABOVE = 8192
_LAMB_RANGE = (5e-3 / 8, 5e-3)


@dataclass(frozen=True)
class Recommendation:
    """Where to start, and why.

    Attributes
    ----------
    learning_rate_low, learning_rate_high : float
        The range to search.
    learning_rate : float
        The peak to start with, inside that range.
    batch_size : int
        Examples per optimizer step, over all devices: micro_batch_size x accumulation x devices.
    micro_batch_size : int
        Examples per forward and backward pass on one device.
    accumulation : int
        Passes per optimizer step on one device.
    epochs : int
    steps_per_epoch, total_steps, warmup_steps : int
        Optimizer steps.
    schedule : {"linear", "cosine", "constant"}
    optimizer : {"adamw", "lamb"}
    checkpoint_every, log_every : int
        Optimizer steps between two checkpoints, and between two records in the log.
    keep : int
        Checkpoints to keep besides the best.
    reasons : tuple of str
        One for each rule that was applied: what it settles, what it says, and its source in parentheses.
    """

    learning_rate_low: float
    learning_rate_high: float
    learning_rate: float
    batch_size: int
    micro_batch_size: int
    accumulation: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    schedule: ScheduleName
    optimizer: OptimizerName
    checkpoint_every: int
    log_every: int
    keep: int
    reasons: tuple[str, ...]

    def config(self, **changes: Any) -> TrainingConfig:
        """Return these settings as the configuration of a run.

        Parameters
        ----------
        **changes
            Fields of `TrainingConfig` to set differently.

        Returns
        -------
        TrainingConfig
        """
        each_epoch = (
            self.checkpoint_every == self.steps_per_epoch
        )  # a run checkpoints after evaluating anyway
        config = TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            warmup=self.warmup_steps,
            optimizer=self.optimizer,
            checkpoint_every=None if each_epoch else self.checkpoint_every,
            keep=self.keep,
        )
        return replace(config, **changes)


def recommend(
    kind: Kind,
    *,
    parameters: int,
    examples: int,
    mean_tokens: float,
    batch_size: int | None = None,
    devices: int = 1,
    epochs: int | None = None,
    per_device_limit: int | None = None,
) -> Recommendation:
    """Recommend settings for a run: published rules, applied to one situation.

    Parameters
    ----------
    kind : {"encoder", "decoder", "pretraining"}
        Fine-tuning an encoder, fine-tuning a decoder, or pre-training either from nothing.
    parameters : int
        Of the whole model, embeddings included.
    examples : int
        Training examples; in pre-training, sequences.
    mean_tokens : float
        Mean length of an example.
    batch_size : int, optional
        Examples per optimizer step over all devices, where it is given by something else.
    devices : int
    epochs : int, optional
    per_device_limit : int, optional
        Examples of one pass that fit into a device's memory; the rest of the batch is accumulated.

    Returns
    -------
    Recommendation
        A place to start a search from. No rule replaces a measurement on the task itself.

    Raises
    ------
    ValueError
        If a value makes no sense; the message names it.
    """
    rates = learning_rate_range(kind, parameters)
    counts = {"examples": examples, "batch_size": batch_size, "devices": devices, "epochs": epochs}
    for name, value in (counts | {"per_device_limit": per_device_limit}).items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
    if not (math.isfinite(mean_tokens) and mean_tokens >= 1):
        raise ValueError(f"mean_tokens is {mean_tokens}, expected a finite number of at least 1")
    few = kind != "pretraining" and examples < FEW_EXAMPLES
    if batch_size is None:
        batch_size, batch_why = default_batch(kind, examples=examples, devices=devices, few=few)
    else:
        batch_why = (f"batch: {batch_size} as given (the caller)",)
    parts = split(batch_size, examples=examples, devices=devices, limit=per_device_limit)
    optimizer: OptimizerName = "lamb" if batch_size > _LAMB_ABOVE else "adamw"
    if optimizer == "lamb":
        rates, rate, rate_why = _with_lamb(kind, batch_size)
    else:
        rate, rate_why = _with_adam(kind, parameters, rates, batch_size, few)
    epochs, epochs_why = choose_epochs(kind, parameters, examples, mean_tokens, epochs)
    return _assembled(
        kind, rates, rate, parts, optimizer, epochs, examples, few, (*rate_why, *batch_why, *epochs_why)
    )


def _assembled(
    kind: Kind,
    rates: RateRange,
    rate: float,
    parts: Split,
    optimizer: OptimizerName,
    epochs: int,
    examples: int,
    few: bool,
    reasons: tuple[str, ...],
) -> Recommendation:
    """Add what follows from the number of steps."""
    batch_size = parts.micro_batch_size * parts.accumulation * parts.devices
    per_epoch = math.ceil(examples / batch_size)
    total = per_epoch * epochs
    warmup, warmup_why = choose_warmup(kind, total, batch_size, few, optimizer)
    checkpoint_every, log_every, records_why = choose_records(per_epoch, total)
    schedule: ScheduleName = "cosine" if kind == "decoder" else "linear"
    source = "Touvron et al. 2023" if kind == "decoder" else "Devlin et al. 2019, Liu et al. 2019"
    schedule_why = f"schedule: {schedule} decay after the warm-up ({source})"
    return Recommendation(
        learning_rate_low=rates.low,
        learning_rate_high=rates.high,
        learning_rate=rate,
        batch_size=batch_size,
        micro_batch_size=parts.micro_batch_size,
        accumulation=parts.accumulation,
        epochs=epochs,
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        schedule=schedule,
        optimizer=optimizer,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        keep=3,
        reasons=(*rates.reasons, *reasons, *parts.reasons, warmup_why, schedule_why, *records_why),
    )


def _with_adam(
    kind: Kind, parameters: int, rates: RateRange, batch_size: int, few: bool
) -> tuple[float, tuple[str, ...]]:
    """Choose a rate in the range, scaled to the batch, and say how."""
    reasons = ["optimizer: AdamW for batches up to 8,192 (Loshchilov & Hutter 2019, You et al. 2020)"]
    if kind == "pretraining":
        base, nearest = min(1e-4, rates.high), 256
        reasons.append(f"learning rate: begin with {written(base)} at a batch of 256 (Devlin et al. 2019)")
    else:
        lowest = kind == "decoder" and parameters >= LARGE_DECODER
        # At 110M parameters a third of the way up is near the 2e-5 of Mosbach et al., two thirds near the
        # 3e-5 of Devlin et al.
        share = 0.0 if lowest else 1 / 3 if few else 2 / 3
        base = rates.low * (rates.high / rates.low) ** share
        # Nothing to scale for batches that the range was found with.
        nearest = min(max(batch_size, 16), 64 if lowest else 32)
        if few:
            reasons.append(
                f"learning rate: fewer than {FEW_EXAMPLES:,} examples, so the lower part of the range "
                "(Mosbach et al. 2021; claim lr-bert)"
            )
    if batch_size == nearest:
        return _digits(base, rates), tuple(reasons)
    scaled = square_root_scaling(base, from_batch=nearest, to_batch=batch_size)
    linear = linear_scaling(base, from_batch=nearest, to_batch=batch_size)
    text = f"learning rate: x {scaled.factor:.2f}, batch {batch_size} instead of {nearest}; {scaled.note}"
    if scaled.betas is not None:
        text += f"; in full the rule also sets betas to {scaled.betas[0]:.3g} and {scaled.betas[1]:.4g}"
    reasons.append(text)
    if not scaled.holds:
        reasons.append(
            f"learning rate: a batch {batch_size / nearest:.0f} times as large is outside the range of the "
            "square-root rule, take the rate as a guess and run a range test (Malladi et al. 2022)"
        )
    reasons.append(
        f"learning rate: in proportion to the batch it would be {written(linear.learning_rate)}; "
        f"{linear.note}; the rule of thumb extends it to Adam (claim lr-linear-scaling)"
    )
    if not rates.low <= scaled.learning_rate <= rates.high:
        reasons.append(
            f"learning rate: scaled it would be {written(scaled.learning_rate)}, outside "
            f"{written(rates.low)} to {written(rates.high)}; the end of the range is taken, go further only "
            "after a range test (no source)"
        )
    return _digits(scaled.learning_rate, rates), tuple(reasons)


def _with_lamb(kind: Kind, batch_size: int) -> tuple[RateRange, float, tuple[str, ...]]:
    """Choose LAMB's rate, whose scale is not Adam's, and say how."""
    scaled = lamb_rate(batch_size)
    why = f"learning rate: {written(_LAMB_RANGE[0])} to {written(_LAMB_RANGE[1])} for LAMB (You et al. 2020)"
    rates = RateRange(*_LAMB_RANGE, (why,))
    reasons = [
        "optimizer: LAMB for batches above 8,192, where earlier recipes did badly on BERT (You et al. 2020; "
        "disputed: tuned Adam reached the same at 32,768, Nado et al. 2021)",
        f"learning rate: {scaled.note}",
    ]
    if not scaled.holds:
        reasons.append(
            f"learning rate: {written(scaled.learning_rate)} at a batch of {batch_size} is outside what "
            "was shown; the end of the range is taken (You et al. 2020)"
        )
    if kind != "pretraining":
        reasons.append(
            "learning rate: LAMB's rates are from pre-training, for fine-tuning none are published; a batch "
            "of at most 256 is on firmer ground (claim batch-ranges)"
        )
    return rates, _digits(scaled.learning_rate, rates), tuple(reasons)


def _digits(rate: float, rates: RateRange) -> float:
    """Round a rate to two digits and keep it inside its range."""
    return min(max(float(f"{rate:.1e}"), rates.low), rates.high)
